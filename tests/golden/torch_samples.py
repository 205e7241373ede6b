"""PyTorch's own sample inputs for the operations that have a counterpart here, with its results (its OpInfo database,
torch.testing._internal; CPU). Writes one safetensors file: the tensors by number, and the list of cases as metadata.

    pip install torch expecttest pytest safetensors
    python tests/golden/torch_samples.py samples.safetensors             all samples, 7 dtypes
    python tests/golden/torch_samples.py small.safetensors --small       few and small ones, which the repository keeps

tests/support/torch_samples.lua runs them: `crescent tests/bench/torch_samples.lua samples.safetensors`."""
import argparse
import json
import warnings

import torch
from safetensors.torch import save_file
from torch.testing._internal.common_methods_invocations import op_db

warnings.filterwarnings('ignore')

NAMES = '''T __radd__ __rdiv__ __rmod__ __rmul__ __rpow__ __rsub__ abs acos add addcdiv addcmul all allclose amax amin any arange argmax
argmin argsort asin atan atan2 bfloat16 bincount bmm bool broadcast_to cat cdist ceil chunk clamp clamp_max clamp_min clone contiguous
cos cosh cumprod cumsum diag diff div dot einsum eq equal exp expand expand_as expm1 eye fft.rfft flatten flip float floor
fmod frac full full_like gather ge gt half histc index_add index_copy index_select isfinite isinf isnan item kthvalue le lerp linspace
log log10 log1p log2 log_softmax logical_and logical_not logical_or logical_xor logspace logsumexp long lt masked_fill masked_select
matmul max maximum mean median meshgrid min minimum mm movedim mul mv nan_to_num narrow ne neg nn.functional.avg_pool2d
nn.functional.conv1d nn.functional.conv2d nn.functional.conv_transpose2d nn.functional.elu nn.functional.embedding nn.functional.gelu
nn.functional.grid_sample nn.functional.group_norm nn.functional.hardtanh nn.functional.interpolate nn.functional.l1_loss
nn.functional.layer_norm nn.functional.leaky_relu nn.functional.linear nn.functional.logsigmoid nn.functional.max_pool2d
nn.functional.mish nn.functional.mse_loss nn.functional.pad nn.functional.pixel_shuffle nn.functional.relu nn.functional.relu6
nn.functional.rms_norm nn.functional.scaled_dot_product_attention nn.functional.silu nn.functional.softplus nonzero norm ones ones_like
outer permute pow prod quantile reciprocal remainder repeat repeat_interleave reshape roll round rsqrt rsub scatter scatter_add select
sigmoid sign sin sinh softmax sort split sqrt square squeeze stack std sub sum t take tan tanh tile topk trace transpose tril triu
true_divide trunc unbind unflatten unfold unique unsqueeze var view where zeros zeros_like'''.split()

DTYPES = {torch.float32: 'f32', torch.float16: 'f16', torch.bfloat16: 'bf16', torch.int32: 'i32', torch.int64: 'i64',
          torch.uint8: 'u8', torch.bool: 'bool', torch.float64: 'f64'}
SMALL = {torch.float32: 2, torch.int64: 1}


class Inexpressible(Exception):
    pass


def plain(value, tensors):
    """A value as JSON; tensors become {'t': number}."""
    if isinstance(value, torch.Tensor):
        if value.dtype not in DTYPES or value.is_sparse:
            raise Inexpressible(str(value.dtype))
        tensors.append(value.detach().contiguous().clone())
        return {'t': len(tensors)}
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float('inf') else {'float': str(value)}
    if isinstance(value, torch.dtype):
        if value not in DTYPES:
            raise Inexpressible(str(value))
        return {'dtype': DTYPES[value]}
    if isinstance(value, (list, tuple)):
        return [plain(v, tensors) for v in value]
    raise Inexpressible(type(value).__name__)


def result_of(value):
    return list(value) if isinstance(value, (list, tuple)) else [value]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('out')
    parser.add_argument('--small', action='store_true')
    parser.add_argument('--most', type=int, default=60, help='samples of an operation and a dtype')
    options = parser.parse_args()
    torch.manual_seed(1)
    tensors, cases, left_out = [], [], {}
    for op in sorted(op_db, key=lambda o: (o.name, o.variant_test_name)):
        if op.name not in NAMES:
            continue
        for dtype in SMALL if options.small else list(DTYPES)[:7]:
            if dtype not in op.dtypes:
                continue
            taken = 0
            for sample in op.sample_inputs('cpu', dtype, requires_grad=False):
                most = SMALL[dtype] if options.small else options.most
                if taken >= most:
                    break
                if options.small and isinstance(sample.input, torch.Tensor) and sample.input.dim() == 0:
                    continue
                before = len(tensors)
                try:
                    if sample.kwargs.get('out') is not None:
                        raise Inexpressible('out')
                    args = [plain(sample.input, tensors)] + [plain(a, tensors) for a in sample.args]
                    kwargs = {k: plain(v, tensors) for k, v in sample.kwargs.items()}
                    expected = plain(result_of(op.op(sample.input, *sample.args, **sample.kwargs)), tensors)
                except (Inexpressible, RuntimeError, TypeError) as why:
                    del tensors[before:]
                    left_out[str(why)[:60]] = left_out.get(str(why)[:60], 0) + 1
                    continue
                if options.small and sum(t.numel() for t in tensors[before:]) > 150:
                    del tensors[before:]
                    continue
                taken += 1
                name = op.name + ('.' + op.variant_test_name if op.variant_test_name else '')
                cases.append({'op': op.name, 'name': name, 'dtype': DTYPES[dtype], 'args': args, 'kwargs': kwargs, 'expected': expected})
    save_file({str(i + 1): t for i, t in enumerate(tensors)}, options.out,
              {'cases': json.dumps(cases, separators=(',', ':')), 'torch': torch.__version__})
    print(len(cases), 'cases of', len({c['op'] for c in cases}), 'operations;', len(tensors), 'tensors; left out:', left_out)


main()
