--- What other libraries have and this one has not: names, and what to use instead.

local M = {}

local GRADIENTS = 'nothing here keeps gradients: networks are trained with PyTorch and run here'
local DECOMPOSITIONS = 'decompositions are not handled: x:tolist() and a few lines of Lua do for small matrices'
local BITS = 'bit operations are not handled: x:remainder(2) is the last bit of whole numbers, bool tensors have logical_and'
local COMPLEX = 'complex numbers are not handled: cr.rfft gives real and imaginary parts as a pair of tensors'
local TWICE = 'this would be a second name: use '
local LAYER = 'this is no layer of the networks here: use '

--- Methods of tensors.
M.methods = {
  backward = GRADIENTS, requires_grad = GRADIENTS, requires_grad_ = GRADIENTS, grad = GRADIENTS, detach = GRADIENTS,
  svd = DECOMPOSITIONS, qr = DECOMPOSITIONS, lu = DECOMPOSITIONS, eig = DECOMPOSITIONS, eigh = DECOMPOSITIONS,
  cholesky = DECOMPOSITIONS, det = DECOMPOSITIONS, inverse = DECOMPOSITIONS, pinverse = DECOMPOSITIONS, solve = DECOMPOSITIONS,
  bitwise_and = BITS, bitwise_or = BITS, bitwise_xor = BITS, bitwise_not = BITS,
  fft = COMPLEX, ifft = COMPLEX, stft = COMPLEX, istft = COMPLEX, real = COMPLEX, imag = COMPLEX, conj = COMPLEX,
  cross = 'use x:select(d, i) of both: component 1 is a2 * b3 - a3 * b2',
  erfc = 'use 1 - x:erf()', erfinv = 'there is no inverse of erf: random normal numbers come from cr.randn',
  nDimension = TWICE .. 'x:dim() or x.ndim', nElement = TWICE .. 'x:numel()', repeatTensor = TWICE .. 'x:tile(...)',
  index = TWICE .. 'x:index_select(1, { 2, 1 }) or x[rows]', rows = TWICE .. 'x:gather_rows { 2, 1 }',
  type_as = TWICE .. 'x:to(y.dtype)', type = TWICE .. 'x.dtype, and x:to(dtype) converts',
  stride = 'strides are not handed out: x:is_contiguous() tells whether there are gaps, x:contiguous() closes them',
  apply = 'a function of Lua for each element would be slow: write it with tensors, or change x:tolist()',
  map = 'a function of Lua for each element would be slow: write it with tensors, or change x:tolist()',
  numpy = "use cr.save('x.npy', x), which numpy.load reads",
  int = TWICE .. "x:to 'i32'", double = TWICE .. "x:to 'f64'", byte = TWICE .. "x:to 'u8'", short = TWICE .. "x:to 'i16'",
  cummax = 'use x:cumsum, or maximum over x:split', cummin = 'use x:cumsum, or minimum over x:split',
  sparse = 'sparse tensors are not handled', to_sparse = 'sparse tensors are not handled',
}

--- Functions of cr.
M.functions = {
  inverse = DECOMPOSITIONS, svd = DECOMPOSITIONS, linalg = DECOMPOSITIONS, det = DECOMPOSITIONS,
  fft = COMPLEX, stft = COMPLEX, complex = COMPLEX, autograd = GRADIENTS, no_grad = GRADIENTS,
  one_hot = 'use cr.eye(n):gather_rows(labels)',
  bernoulli = 'use cr.rand_like(p):lt(p)', multinomial = 'use (p:cumsum(2):lt(u)):sum(2) + 1 with u = cr.rand(n, 1) * p:sum(2, true)',
  FloatTensor = "use cr.tensor { ... }", Tensor = 'use cr.tensor { ... }', device = "use the option { device = 'cuda' }",
  optim = GRADIENTS, jit = 'networks are recorded with cr.graph', compile = 'networks are recorded with cr.graph',
  unsqueeze = 'it is a method: x:unsqueeze(d)', matmul = 'it is a method: a:matmul(b)', sum = 'it is a method: x:sum()',
  mean = 'it is a method: x:mean()', exp = 'it is a method: x:exp()', sqrt = 'it is a method: x:sqrt()',
  clamp = 'it is a method: x:clamp(low, high)', abs = 'it is a method: x:abs()', max = 'it is a method: x:max()',
  min = 'it is a method: x:min()', sigmoid = 'it is a method: x:sigmoid()', softmax = 'it is a method: x:softmax()',
  sort = 'it is a method: x:sort()', topk = 'it is a method: x:topk(k)', gather = 'it is a method: x:gather(d, index)',
}

--- Layers of cr.nn.
M.layers = {
  conv3d = LAYER .. 'nn.conv2d of the frames', conv_transpose3d = LAYER .. 'nn.conv_transpose2d of the frames',
  batch_norm = LAYER .. "x * scale + shift with the file's means and variances folded in, as cr.onnx does",
  instance_norm = LAYER .. 'nn.group_norm with as many groups as channels',
  dropout = 'nothing here is trained: at inference dropout is x itself',
  adaptive_avg_pool2d = LAYER .. 'x:mean({ 2, 3 }, true) for one pixel, nn.avg_pool2d for more',
  cross_entropy = 'nothing here is trained: -x:log_softmax():gather(2, labels):mean() is its value',
  lstm = 'recurrent layers are not handled: models/networks/vad.lua has one as a loop', gru = 'recurrent layers are not handled',
  Linear = LAYER .. 'nn.linear(w, x)', Conv2d = LAYER .. 'nn.conv2d(w, x, options)',
  Module = 'a network is a function over a table of weights',
  Sequential = 'a network is a function over a table of weights',
  leaky_relu = LAYER .. 'x:leaky_relu(slope)', elu = LAYER .. 'x:elu()', mish = LAYER .. 'x:mish()', tanh = LAYER .. 'x:tanh()',
  sigmoid = LAYER .. 'x:sigmoid()', log_softmax = LAYER .. 'x:log_softmax()',
}

return M
