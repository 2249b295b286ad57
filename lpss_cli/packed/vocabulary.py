"""What headers are likely to say: a zstd dictionary of raw content for the header alone.

A small network's header would be a tenth of its file, and most of it is the same in all files.
docs/format.md holds this text too: it belongs to the format and changes with its version only.
"""

from __future__ import annotations

VOCABULARY = (
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
