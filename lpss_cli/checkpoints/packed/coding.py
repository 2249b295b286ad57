"""Byte strings as the file holds them: as they are, or as a zstd frame where that is shorter.

The length of the plain string is known before it is read, from the tensor's shape and code. A
stored string of exactly that length is plain; a shorter one is a zstd frame.

The header's frame uses a dictionary of raw content: what headers are likely to say. Without it, the
header of a small network would be a tenth of its file, and most of it is the same in all files.
docs/format.md has these texts too: they belong to the format, and change only with its version.
"""

from __future__ import annotations

from typing import Any

import zstandard
from numpy.typing import NDArray

Array = NDArray[Any]

#: First bytes of a packed file. The first of them is not text, and those at the end are what a
#: transfer as text would change.
MAGIC = b"\x93LPSS\r\n\x1a"
# The slow search for repetitions is left out for longer strings.
_MAX_SLOW_SEARCH = 1 << 16


class MalformedError(ValueError):
    """The bytes are not what any writer of the format makes; the message says what is wrong."""


def require(condition: bool, problem: str) -> None:
    """Raise ``MalformedError(problem)`` unless the condition holds."""
    if not condition:
        raise MalformedError(problem)


def store_section(data: bytes, compress: bool = True) -> bytes:
    """Return what the file holds: the shortest of the plain string and its zstd frames."""
    if not compress or not data:
        return data
    frames = (compressor.compress(data) for compressor in _compressors(len(data)))
    return min([data, *frames], key=len)


def load_section(stored: bytes, length: int) -> bytes:
    """Return the plain string of ``length`` bytes, without taking more memory than that.

    Raises:
        MalformedError: the stored string is longer, or is not a zstd frame of exactly that content.
    """
    return _load(stored, length, zstandard.ZstdDecompressor())


def store_header(text: bytes, version: int, compress: bool = True) -> bytes:
    """Return what the file holds of its header: as it is, or a frame with the dictionary."""
    if not compress:
        return text
    compressor = zstandard.ZstdCompressor(level=19, dict_data=_DICTIONARIES[version])
    return min(text, compressor.compress(text), key=len)


def load_header(stored: bytes, length: int, version: int) -> bytes:
    """Return the plain header of ``length`` bytes, without taking more memory than that.

    Raises:
        MalformedError: see :func:`load_section`.
    """
    return _load(stored, length, zstandard.ZstdDecompressor(dict_data=_DICTIONARIES[version]))


def _compressors(length: int) -> list[zstandard.ZstdCompressor]:
    """Return two compressors: mostly entropy coding, and a search for repetitions.

    The bytes of trained weights have few values and no repetitions: the short matches that the
    usual levels find by chance cost more than they save.
    """
    entropy = zstandard.ZstdCompressionParameters.from_level(
        1, strategy=zstandard.STRATEGY_FAST, min_match=7, window_log=17
    )
    return [
        zstandard.ZstdCompressor(compression_params=entropy),
        zstandard.ZstdCompressor(level=19 if length <= _MAX_SLOW_SEARCH else 3),
    ]


def _load(stored: bytes, length: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    require(len(stored) <= length, "a section that is longer than its content")
    if len(stored) == length:
        return stored
    try:
        # Checked first, because the decompressor allocates what the frame declares.
        declared = zstandard.frame_content_size(stored)
        require(declared == length, f"a zstd frame of {declared} bytes instead of {length}")
        plain = decompressor.decompress(stored, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MalformedError(f"a broken zstd frame ({error})") from None
    require(len(plain) == length, "a zstd frame of another length than it declares")
    return plain


_VERSION_1 = (
    b'"off_sphere":[],"path":"cubic","initial_sparsity":0.2,"drop_threshold":0.2,"delta":0.1},'
    b'"nesterov":true,"rounds":1,"begin":0.1,"end":0.7,"frequency":20,"ranking":"balanced",'
    b'"magnitude""lamp""uniform""erk","p":[],"eta":null,"gain":"learned","gain_lr":0.03,'
    b'"mlp:784-300-100-10""lenet300""lenet5""resnet20""wrn18""vgg16""torchvision:resnet50""timm:'
    b'"digits""mnist""fashion-mnist""cifar10""cifar100""csv""folder""npz"'
    b"lpss train --arch --data --data-dir --epochs --batch-size --sparsity 0.9 --method --seed "
    b"--precision bf16 --lr --p -o lpss sparsify model.pt.sparse.pt --recipe --resume"
    b'{"meta":{"arch":"","input_shape":[3,32,32],[3,224,224],[1,28,28],"outputs":10,'
    b'"task":"classification""regression","primary_metric":"accuracy","higher_is_better":true,'
    b'"data":{"name":"","data_dir":null,"target":null,"drop":[],"image_size":null,'
    b'"mean":[0.1307],"std":[0.3081],"workers":0,"split_seed":0,"augment":"none"},"data_name":"",'
    b'"data_fingerprint":"","classes":["0","1","2","3","4","5","6","7","8","9"],'
    b'"preprocessing":{"kind":"image","divide_by":255,"image_size":[28,28],"mean":[],"std":[]},'
    b'"method":"lpss""gsm""gmp""dense","config":{"lr":0.05,"momentum":0.9,"weight_decay":0.0,'
    b'"clip":2.0,"warmup":0.05,"notes":[],"settings":{"epochs":12,"batch_size":256,"seed":0,'
    b'"sparsity":0.9,"skip":[],"keep_zeros":false,"precision":"fp32"},"sparsity":0.9,"weights":{'
    b'"fc1.weight":{"row_dim":0,"p":null,"travel":null},"versions":{"lpss":"0.1.0","torch":"2.",'
    b'"python":"3.1","threads":"1"},"device":"cpu""cuda","command":"lpss ","source":null,'
    b'"metrics":{"on":"test","before":null,"before_cut":null,"after":{"accuracy":0.9,'
    b'"balanced_accuracy":0.9}},"seconds":1},"about":{"values":"fp16","source_sha256":"'
    b'"},"short":4096,"joined":[],"tensors":[{"name":"conv1.weight","dtype":"float16",'
    b'"shape":[64,3,3,3],"rows":["gaps",],"columns":["gaps",],"places":["bytes",'
    b'"values":"int8-rows","sections":[]},{"name":"layer1.0.bn1.num_batches_tracked",'
    b'"dtype":"int64","shape":[],"values":"raw","sections":[]},{"name":"layer1.0.shortcut.'
    b'downsample.0.weight","dtype":"float32","shape":[256,128,3,3],"rows":["mask",],'
    b'"columns":["mask",],"places":["mask",],"values":"bf16","sections":[]},{"name":"layer2.1.'
    b'bn2.running_mean","dtype":"float32","shape":[64],"values":"raw","sections":[]},{"name":'
    b'"bn2.running_var","dtype":"float32","shape":[128],"as":0},{"name":"fc.weight","dtype":'
    b'"float32","shape":[10,100],"places":["gaps",100,2,300],"values":"fp16","sections":[1,2]},'
    b'{"name":"fc1.bias","dtype":"float32","shape":[10],"values":"raw","sections":[]}]}'
)

_ADDED_IN_VERSION_2 = (
    b'"T-shirt/top","Trouser","Pullover","Dress","Coat","Sandal","Shirt","Sneaker","Bag",'
    b'"Ankle boot"],"airplane","automobile","bird","cat","deer","dog","frog","horse","ship",'
    b'"truck"],"name":"digits","data_dir":"data","resize":256,"interpolation":"bilinear",'
    b'"kind":"table""text","columns":[],"notes":["gsm: learning rate 0.09, momentum 0.95, decay '
    b'0.004: a redundant weight fades to 3e-05 of its start"],"nesterov":false,"settle":0.4,'
    b'"peak":null},"lr":null,"momentum":null,"weight_decay":null,"clip":1.0,"warmup":0.02,'
    b'"begin":0.1,"end":1.0,"file":"model.pt","sha256":""},"search":{},"threads":"2"},'
    b'"input_shape":[1,28,28],"outputs":10,"task":"classification","primary_metric":"accuracy",'
    b'"higher_is_better":true,"data":{"name":"mnist","data_dir":null,"target":null,"drop":[],'
    b'"image_size":null,"resize":null,"interpolation":null,"mean":[0.1307],"std":[0.3081],'
    b'"workers":0,"split_seed":0,"augment":"none"},"classes":["0 - zero","1 - one","2 - two",'
    b'"3 - three","4 - four","5 - five","6 - six","7 - seven","8 - eight","9 - nine"],'
    b'"preprocessing":{"kind":"image","divide_by":255,"image_size":[28,28],"mean":[0.1307],'
    b'"std":[0.3081]},"method":"lpss","config":{"lr":0.05,"momentum":0.9,"weight_decay":0.0,'
    b'"clip":2.0,"warmup":0.05,"begin":0.1,"end":0.7,"frequency":20,"ranking":"lamp","p":[],'
    b'"eta":null,"gain":"learned","gain_lr":0.03,"off_sphere":[],"path":"cubic",'
    b'"initial_sparsity":0.2,"drop_threshold":0.2,"delta":0.1},"notes":[],"settings":{"epochs":12,'
    b'"batch_size":256,"seed":0,"sparsity":0.9,"layers":[],"skip":[],"keep_zeros":false,'
    b'"precision":"fp32","distill":0.0,"temperature":4.0},"sparsity":0.9,"weights":{"fc1.weight":{'
    b'"row_dim":0,"p":1.2222222222222223,"travel":14.0},"fc2.weight":{"row_dim":0,"p":1.2,'
    b'"travel":14.0}},"versions":{"lpss":"0.1.0","torch":"2.15.0+cpu","python":"3.12.",'
    b'"threads":"1"},"device":"cpu","command":"lpss train ","source":null,"metrics":{"on":"test",'
    b'"before":null,"before_cut":null,"after":{"accuracy":0.98,"balanced_accuracy":0.98}},'
    b'"seconds":1},"about":{"values":"fp16","source_sha256":"'
    b'"},"short":512,"joined":[4],"tensors":[{"name":"fc1.weight","dtype":"float32",'
    b'"shape":[300,784],"rows":["mask",298],"places":["bytes",1,1],"split":["gaps",1,0,1],'
    b'"rest":["bytes",1,1],"values":"fp16","sections":[1]},{"name":"fc1.bias",'
    b'"dtype":"float32","shape":[300],"values":"fp16","sections":[]},{"name":"conv1.weight",'
    b'"dtype":"float32","shape":[20,1,5,5],"places":["mask",204],"values":"fp16","sections":[1]},{'
    b'"name":"conv1.bias","dtype":"float32","shape":[20],"values":"fp16","sections":[]}]}'
)

#: The texts of the dictionary, by version of the format.
VOCABULARIES = {1: _VERSION_1, 2: _VERSION_1 + _ADDED_IN_VERSION_2}

_DICTIONARIES = {
    version: zstandard.ZstdCompressionDict(text, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    for version, text in VOCABULARIES.items()
}
