"""Where the kept weights are, in bits: Rice-coded gaps, a bitmask, or gaps as bytes.

A gap is the number of zeros in front of a kept weight. Rice's code with parameter k (Rice & Plaunt,
IEEE Trans. Commun. 19, 1971; Golomb's code for divisors 2^k) writes ``gap >> k`` in unary, so many
0 bits and a 1, and the k low bits as they are. The two halves are streams of their own, so that
both are read without a loop over the weights. All bits fill bytes from the least significant one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

Array = NDArray[Any]


class MalformedError(ValueError):
    """Bytes that no writer of the format makes."""


def need(condition: bool, what: str) -> None:
    """Raise ``MalformedError(what)`` unless the condition holds."""
    if not condition:
        raise MalformedError(what)


def size_of(bits: int) -> int:
    """Return how many bytes hold so many bits."""
    return (bits + 7) // 8


def gaps_of(positions: Array) -> Array:
    """Return the zeros in front of each kept weight: (K,) rising indices -> (K,) gaps ≥ 0."""
    return np.diff(positions, prepend=-1) - 1


def rice_parameter(gaps: Array) -> int:
    """Return the k that makes the code shortest.

    With q = gap >> k the length is K·(k + 1) + Σq. From k to k + 1 it changes by K - Σ⌈q/2⌉, which
    only grows with k, so the first k at which it is not negative is the best one. Then k = 0 or
    K·2^k < 2n for n weights: a step from k - 1 to k is taken only while K < Σq ≤ n / 2^(k - 1).
    """
    k, quotients = 0, gaps.copy()
    while int(((quotients + 1) >> 1).sum()) > len(gaps):
        quotients >>= 1
        k += 1
    return k


def encode_gaps(positions: Array, k: int) -> tuple[bytes, int, bytes]:
    """Write the indices of the kept weights.

    Args:
        positions: (K,) strictly rising indices ≥ 0.
        k: Rice's parameter, 0 to 31.

    Returns:
        The unary stream, its length in bits, and the stream of k-bit remainders.
    """
    gaps = gaps_of(positions)
    ends = np.cumsum((gaps >> k) + 1) - 1
    length = int(ends[-1]) + 1 if len(ends) else 0
    unary = np.zeros(length, np.uint8)
    unary[ends] = 1
    # Bit by bit: (K, k) of the remainders' bits, the lowest first.
    low = np.empty((len(gaps), k), np.uint8)
    for bit in range(k):
        low[:, bit] = (gaps >> bit) & 1
    return _pack(unary), length, _pack(low.reshape(-1))


def decode_gaps(
    unary: bytes, length: int, remainders: bytes, k: int, kept: int, count: int
) -> Array:
    """Read the indices of ``kept`` weights among ``count``; the inverse of ``encode_gaps``.

    Raises:
        MalformedError: another number of weights, an index that is not below ``count``, or bits
            beyond the end that are not zero.
    """
    ends = np.flatnonzero(_unpack(unary, length))
    need(len(ends) == kept, f"{len(ends)} gaps for {kept} kept weights")
    need(kept == 0 or int(ends[-1]) == length - 1, "a gap without an end")
    steps = np.diff(ends, prepend=-1) - 1
    steps <<= k
    low = _unpack(remainders, kept * k).reshape(kept, k)
    for bit in range(k):
        steps += low[:, bit].astype(np.int64) << bit
    positions = np.cumsum(steps + 1) - 1
    need(kept == 0 or int(positions[-1]) < count, "a kept weight beyond the end of its tensor")
    return positions


def encode_mask(positions: Array, count: int) -> bytes:
    """Write one bit for every one of ``count`` weights, 1 for the kept ones."""
    mask = np.zeros(count, np.uint8)
    mask[positions] = 1
    return _pack(mask)


def decode_mask(data: bytes, kept: int, count: int) -> Array:
    """Read the indices of the kept weights; the inverse of ``encode_mask``.

    Raises:
        MalformedError: another number of weights than ``kept``, or bits beyond the end.
    """
    positions = np.flatnonzero(_unpack(data, count))
    need(len(positions) == kept, f"{len(positions)} bits set for {kept} kept weights")
    return positions


def encode_bytes(positions: Array) -> bytes:
    """Write every gap as gap // 255 bytes of 255 and one byte of gap % 255, for zstd to shorten."""
    gaps = gaps_of(positions)
    ends = np.cumsum(gaps // 255 + 1) - 1
    written = np.full(int(ends[-1]) + 1 if len(ends) else 0, 255, np.uint8)
    written[ends] = gaps % 255
    return written.tobytes()


def decode_bytes(data: bytes, kept: int, count: int) -> Array:
    """Read the indices of the kept weights; the inverse of ``encode_bytes``.

    Raises:
        MalformedError: another number of weights than ``kept``, or an index not below ``count``.
    """
    written = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(written < 255)
    need(len(ends) == kept, f"{len(ends)} gaps for {kept} kept weights")
    need(len(data) == (int(ends[-1]) + 1 if kept else 0), "a gap without an end")
    positions = np.cumsum(written, dtype=np.int64)[ends] + np.arange(kept)
    need(kept == 0 or int(positions[-1]) < count, "a kept weight beyond the end of its tensor")
    return positions


def _pack(bits: Array) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


def _unpack(data: bytes, length: int) -> Array:
    need(len(data) == size_of(length), "a stream of bits of the wrong length")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    need(not bits[length:].any(), "bits beyond the end of a stream")
    return bits[:length]


# MERGED: What headers are likely to say: a zstd dictionary of raw content for the header alone.
# MERGED: A small network's header would be a tenth of its file, and most of it is the same in all
# MERGED: files.
# MERGED: docs/format.md holds these texts too: they belong to the format and change with its
# MERGED: version only.
_FIRST = (
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

_SECOND = (
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

#: By version of the format.
VOCABULARIES = {1: _FIRST, 2: _FIRST + _SECOND}


# MERGED: Strings of bytes as the file holds them: as they are, or as a zstd frame where that is
# MERGED: shorter.
# MERGED: The length of the plain string is known before it is read, from the tensor's shape and
# MERGED: code. A
# MERGED: stored string of that very length is plain, a shorter one is a zstd frame.
# Beyond this the slow search for repetitions is left out.
_SEARCHED = 1 << 16
_WORDS = {
    version: zstandard.ZstdCompressionDict(words, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    for version, words in VOCABULARIES.items()
}


def store_section(data: bytes, compress: bool = True) -> bytes:
    """Return what the file holds: the shortest of the plain string and its zstd frames."""
    if not compress or not data:
        return data
    return min([data, *(made.compress(data) for made in _compressors(len(data)))], key=len)


def store_header(text: bytes, version: int, compress: bool = True) -> bytes:
    """Return what the file holds of its header: as it is, or as a frame with the vocabulary."""
    if not compress:
        return text
    made = zstandard.ZstdCompressor(level=19, dict_data=_WORDS[version])
    return min(text, made.compress(text), key=len)


def _compressors(length: int) -> list[zstandard.ZstdCompressor]:
    """Two ways to make a frame: entropy coding nearly alone, and a search for repetitions.

    The bytes of trained weights have few values and no repetitions: the short matches that the
    usual levels find by chance cost more than they save.
    """
    entropy = zstandard.ZstdCompressionParameters.from_level(
        1, strategy=zstandard.STRATEGY_FAST, min_match=7, window_log=17
    )
    return [
        zstandard.ZstdCompressor(compression_params=entropy),
        zstandard.ZstdCompressor(level=19 if length <= _SEARCHED else 3),
    ]


def load_header(stored: bytes, length: int, version: int) -> bytes:
    """Return the plain header; as ``load``."""
    return _load_section(stored, length, zstandard.ZstdDecompressor(dict_data=_WORDS[version]))


def load_section(stored: bytes, length: int) -> bytes:
    """Return the plain string of ``length`` bytes; no more memory than that is taken.

    Raises:
        MalformedError: the stored string is longer, or no zstd frame of exactly that content.
    """
    return _load_section(stored, length, zstandard.ZstdDecompressor())


def _load_section(stored: bytes, length: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    need(len(stored) <= length, "a section that is longer than its content")
    if len(stored) == length:
        return stored
    try:
        # Asked first: the decompressor allocates what the frame declares.
        declared = zstandard.frame_content_size(stored)
        need(declared == length, f"a zstd frame of {declared} bytes instead of {length}")
        plain = decompressor.decompress(stored, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MalformedError(f"a broken zstd frame ({error})") from None
    need(len(plain) == length, "a zstd frame of another length than it declares")
    return plain
