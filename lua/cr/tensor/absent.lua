--- Names that other libraries have and this one does not, and what to use instead.

local base = require 'cr.ffi'
local errors = require 'cr.errors'

local M = {}

local GRADIENTS = 'there are no gradients: networks are trained with PyTorch and run here'
local DECOMPOSITIONS = 'decompositions are not supported: for small matrices use x:tolist() and a few lines of Lua'
local BITS = 'bit operations are not supported: x:remainder(2) is the lowest bit of whole numbers, bool tensors have logical_and'
local COMPLEX = 'complex numbers are not supported: cr.rfft(x, { 1, 2 }) returns real and imaginary parts as a pair of tensors'
local TWICE = 'it has another name here: use '

local NEW = 'use cr.zeros, cr.ones, cr.full or cr.tensor with { dtype = x.dtype, device = x.device }'
local SHAPES = 'shapes do not change in place: write x = x:reshape(...), x = x:t(), and so on'
local SPECIAL = 'erf is the only special function'
local LETTERS = 'use cr.einsum'
local ITSELF = 'it would have no effect here: use x itself'
local ARRAYS = 'x:pointer() gives the numbers of a tensor on the CPU'
local STATE = 'use cr.generator(seed)'
local MEMORY = "cr.memory('cuda') reports the memory of tensors, cr.trim() frees cached memory"
local NETWORK = 'a network is a function over a table of weights'
local TRAINING = 'there is no training here: networks are trained with PyTorch and run here'
local DTYPES = "dtypes are strings: { dtype = 'f32' }, x:to 'i64'"

-- Registers several names with the same answer.
local function same(answer, names, into)
  for name in names:gmatch '%S+' do into[name] = answer end
end

--- Methods of tensors.
M.methods = {
  cross = 'use x:select(d, i) of both: component 1 is a2 * b3 - a3 * b2',
  erfc = 'use 1 - x:erf()', erfinv = 'there is no inverse of erf: cr.randn draws normal random numbers',
  bernoulli = 'use cr.rand_like(p):lt(p)', bernoulli_ = 'use x:copy_(cr.rand_like(x):lt(p))',
  multinomial = 'use (p:cumsum(2):lt(u)):sum(2) + 1 with u = cr.rand(n, 1) * p:sum(2, true)',
  random_ = 'use x:copy_(cr.randint(first, limit, x.shape))', exponential_ = 'use -cr.rand_like(x):log()',
  index = TWICE .. 'x:index_select(1, { 2, 1 }) or x[rows]', rows = TWICE .. 'x:gather_rows { 2, 1 }',
  take_along_dim = TWICE .. 'x:gather(d, index)', index_put_ = TWICE .. 'x[rows] = y', masked_scatter = TWICE .. 'x[mask] = y',
  masked_scatter_ = TWICE .. 'x[mask] = y', scatter = 'use x:clone():scatter_(d, index, y)',
  scatter_add = 'use x:clone():scatter_add_(d, index, y)', scatter_reduce_ = 'use x:scatter_add_(d, index, y)',
  index_add = 'use x:clone():index_add_(d, index, y)', index_copy = 'use x:clone():index_copy_(d, index, y)',
  index_fill_ = 'use x[{ {}, columns }] = number', argwhere = TWICE .. 'x:nonzero()', count_nonzero = 'use x:ne(0):sum()',
  type_as = TWICE .. 'x:to(y.dtype)', type = TWICE .. 'x.dtype, and x:to(dtype) converts',
  view_as = TWICE .. 'x:view(y.shape)', reshape_as = TWICE .. 'x:reshape(y.shape)',
  stride = 'strides are not accessible: x:is_contiguous() tells whether a tensor is contiguous, x:contiguous() makes it so',
  names = 'dimensions have numbers, not names', is_cuda = TWICE .. 'x.device', storage = 'use x:pointer() of a tensor on the CPU',
  numpy = "use cr.save('x.npy', x), which numpy.load reads", data = ITSELF,
  cummax = 'use x:cumsum, or maximum over x:split', cummin = 'use x:cumsum, or minimum over x:split',
  amax = TWICE .. 'x:max(d)', amin = TWICE .. 'x:min(d)', aminmax = 'use x:min(d) and x:max(d)',
  std_mean = 'use x:std(d) and x:mean(d)', var_mean = 'use x:var(d) and x:mean(d)', mode = 'use x:unique() and x:bincount()',
  nansum = 'use x:nan_to_num():sum(d)', nanmean = "use x:nan_to_num():sum(d) / x:eq(x):to 'f32':sum(d)",
  nanmedian = 'use x[x:isnan():logical_not()]:median()', logcumsumexp = 'use x:exp():cumsum(d):log()',
  histogram = TWICE .. 'x:histc(bins, low, high)', unique_consecutive = 'use x:unique(), or x:diff() to compare neighbours',
  cov = 'use y:t():matmul(y) / (n - 1) with y = x - x:mean(1, true)',
  corrcoef = 'use y:t():matmul(y) / n with y = (x - x:mean(1, true)) / x:std(1, true)',
  clip = TWICE .. 'x:clamp(low, high)', clip_ = TWICE .. 'x:clamp_(low, high)', fix = TWICE .. 'x:trunc()', absolute = TWICE .. 'x:abs()',
  negative = TWICE .. 'x:neg()', logit = 'use (x / (1 - x)):log()', hypot = 'use (a * a + b * b):sqrt()',
  floor_divide = 'use (a / b):floor()', true_divide = TWICE .. 'a / b', subtract = TWICE .. 'a - b', multiply = TWICE .. 'a * b',
  divide = TWICE .. 'a / b', heaviside = "use x:gt(0):to 'f32'", arctan2 = TWICE .. 'y:atan2(x)', arccos = TWICE .. 'x:acos()',
  arcsin = TWICE .. 'x:asin()', arctan = TWICE .. 'x:atan()', rad2deg = 'use x * (180 / math.pi)', deg2rad = 'use x * (math.pi / 180)',
  addmm = 'use c + a:matmul(b)', addmv = 'use c + a:mv(b)', addbmm = 'use c + a:bmm(b):sum(1)', baddbmm = 'use c + a:bmm(b)',
  chain_matmul = 'use a:matmul(b):matmul(c)', matrix_power = 'use x:matmul(x) repeatedly',
  searchsorted = 'use x:unsqueeze(-1):gt(edges):sum(-1) + 1', bucketize = 'use x:unsqueeze(-1):gt(edges):sum(-1) + 1',
  einops = 'use cr.einsum, or x:view and x:permute', rearrange = 'use cr.einsum, or x:view and x:permute',
  mT = 'use x:transpose(-2, -1)', H = 'use x:transpose(-2, -1)', isclose = 'use (a - b):abs():le(b:abs() * 1e-5 + 1e-8)',
  put_ = 'use x:reshape(-1):index_copy_(1, cr.tensor({ 2 }, { dtype = "i64" }), cr.tensor { 7 })', fliplr = 'use x:flip(2)',
  flipud = 'use x:flip(1)', rot90 = 'use x:transpose(1, 2):flip(1)', broadcast_to = TWICE .. 'x:expand(x.shape)',
  ['repeat'] = 'repeat is a reserved word of Lua: use x:tile(2, 1) or x:repeat_(2, 1)', exp2 = 'use 2 ^ x', xlogy = 'use a * b:log()',
  float_power = "use x:to 'f64' ^ 2", sgn = TWICE .. 'x:sign()', signbit = 'use x:lt(0)', copysign = 'use a:abs() * b:sign()',
  logaddexp = 'use cr.stack({ a, b }, 1):logsumexp(1)', dist = 'use (a - b):norm(2)', msort = 'use x:sort(1)',
  diag_embed = 'use cr.eye(3) * x:unsqueeze(-1)', diagonal = 'use x:diag()', select_scatter = 'use x:clone(), and y[2] = number',
  as_strided = 'use x:unfold(d, size, step)', inner = 'use a:matmul(b:t())', vdot = TWICE .. 'x[1]:dot(x[2])',
  ger = TWICE .. 'x[1]:outer(x[2])', selu = 'use x:elu(1.6732632423543772) * 1.0507009873554805',
  hardswish = 'use x * (x + 3):clamp(0, 6) / 6',
  hardsigmoid = 'use (x + 3):clamp(0, 6) / 6', softsign = 'use x / (x:abs() + 1)', prelu = 'use x:clamp_min(0) + x:clamp_max(0) * slope',
  celu = 'use x:elu()', tanhshrink = 'use x - x:tanh()',
  fill = 'use cr.full_like(x, number)',
  is_same_size = 'use x.shape', nbytes = 'use x:numel(), and x.dtype',
  tensor_split = TWICE .. 'x:chunk(n, d) or x:split({ 1, 2 }, d)', is_floating_point = 'use x.dtype', is_complex = COMPLEX,
  fold = 'use out:index_add_ of the windows, or nn.conv_transpose2d', renorm = 'use x * (limit / x:norm(2, d, true)):clamp(0, 1)',
}
same(GRADIENTS, 'backward requires_grad requires_grad_ grad detach detach_ retain_grad register_hook', M.methods)
same(DECOMPOSITIONS, 'svd qr lu eig eigh cholesky det logdet inverse pinverse solve lstsq symeig', M.methods)
same(BITS, 'bitwise_and bitwise_or bitwise_xor bitwise_not', M.methods)
same(COMPLEX, 'fft ifft stft istft real imag conj angle complex cfloat view_as_complex view_as_real', M.methods)
same('sparse tensors are not supported', 'sparse to_sparse to_dense', M.methods)
same(SPECIAL, 'digamma lgamma polygamma i0 sinc erfcx', M.methods)
same(NEW, 'new new_zeros new_ones new_full new_empty new_tensor', M.methods)
same(SHAPES, 'permute_ transpose_ t_ squeeze_ unsqueeze_ resize_ reshape_ view_', M.methods)
same(LETTERS, 'kron tensordot', M.methods)
same('calling a Lua function for each element would be slow: use tensor operations, or x:tolist()', 'apply map apply_ map_', M.methods)
same(TWICE .. 'x:transpose(1, 2)', 'swapaxes swapdims', M.methods)
same(TWICE .. 'x:movedim(from, to)', 'moveaxis', M.methods)
same(TWICE .. 'x:flatten() or x:reshape(-1)', 'ravel', M.methods)
same(TWICE .. 'x:dim() or x.ndim', 'nDimension ndimension', M.methods)
same(TWICE .. 'x:numel()', 'nElement nelement', M.methods)
same(TWICE .. 'x:tile(...)', 'repeatTensor', M.methods)
same(ARRAYS, 'data_ptr untyped_storage', M.methods)
same('use x:numel(), and x.dtype', 'element_size itemsize', M.methods)
same(ITSELF, 'pin_memory share_memory_ positive resolve_conj resolve_neg', M.methods)
same(TWICE .. 'x:split({ 1, 2 }, d)', 'hsplit vsplit dsplit', M.methods)
same('use x:sum(-1) - (x:select(-1, 1) + x:select(-1, -1)) / 2', 'trapezoid trapz', M.methods)
same(TWICE .. 'x:maximum(y)', 'fmax', M.methods)
same(TWICE .. 'x:minimum(y)', 'fmin', M.methods)
same(TWICE .. 'x:gt(y), x:ge(y), x:lt(y), x:le(y), x:ne(y)', 'greater greater_equal less less_equal not_equal', M.methods)
same(GRADIENTS, 'grad_fn is_leaf', M.methods)
for name, dtype in pairs { int = 'i32', double = 'f64', byte = 'u8', short = 'i16', char = 'i8' } do
  M.methods[name] = ("%sx:to '%s'"):format(TWICE, dtype)
end

--- Functions of cr. Names of tensor methods need no entry here.
M.functions = {
  linalg = 'x:norm(p, d) has norms, x:matmul products; ' .. DECOMPOSITIONS, one_hot = 'use cr.eye(n):gather_rows(labels)',
  bernoulli = M.methods.bernoulli, multinomial = M.methods.multinomial,
  device = "use the option { device = 'cuda' }", from_numpy = "use cr.load 'x.npy'",
  Generator = 'use cr.generator(seed)', functional = 'layers are functions of nn: nn.silu(x)',
  nan = 'use 0 / 0', inf = 'use math.huge', pi = 'use math.pi', e = 'use math.exp(1)',
  rfftfreq = 'use cr.arange(0, math.floor(n / 2)) / n', range = TWICE .. 'cr.arange(first, last)',
  fftfreq = 'use (cr.arange(0, n - 1) + math.floor(n / 2)):remainder(n) / n - math.floor(n / 2) / n',
  fftshift = 'use x:roll(math.floor(x:size(d) / 2), d)', ifftshift = 'use x:roll(-math.floor(x:size(d) / 2), d)',
  set_default_dtype = "use the option { dtype = 'f16' }",
  set_default_device = 'use the option { device = "cpu" }, or :device at the prompt',
  autocast = "a model has one dtype: use --dtype f16, or dtype = 'f16' in a session",
  vmap = 'operations take batches: use x:unsqueeze(1) to add a dimension',
  set_printoptions = 'use x:tolist()',
  tril_indices = 'use cr.ones(n, n):tril():nonzero()', triu_indices = 'use cr.ones(n, n):triu():nonzero()', len = 'use #x or x:size(d)',
  type = 'use x.dtype or cr.is_tensor(x)', normal = 'use cr.randn(n) * 2 + 1', distributions = 'use cr.rand(n) or cr.randn(n)',
  hann_window = 'use (cr.arange(0, n - 1) * (2 * math.pi / n)):cos() * -0.5 + 0.5', broadcast_tensors = 'use x:expand(x.shape)',
  hamming_window = 'use (cr.arange(0, n - 1) * (2 * math.pi / n)):cos() * -0.46 + 0.54', numel = 'use x:numel()',
  cartesian_prod = 'use cr.meshgrid', block_diag = 'use cr.zeros(n, n), and y[{ { 1, 3 }, { 1, 3 } }] = a',
}
same(STATE, 'seed initial_seed get_rng_state set_rng_state random', M.functions)
same(TRAINING, 'utils hub', M.functions)
same(GRADIENTS, 'is_grad_enabled', M.functions)
same(DECOMPOSITIONS, 'inverse svd det qr', M.functions)
same(COMPLEX, 'fft ifft fft2 ifft2 fftn ifftn rfft2 irfft2 stft complex polar', M.functions)
same(GRADIENTS, 'autograd no_grad inference_mode set_grad_enabled optim', M.functions)
same('use cr.tensor { ... }', 'FloatTensor Tensor LongTensor as_tensor', M.functions)
same('networks are recorded with cr.graph', 'jit compile', M.functions)
same(TWICE .. 'cr.cat(list, d)', 'concat concatenate hstack vstack column_stack row_stack', M.functions)
same(DTYPES, 'float32 float16 bfloat16 float64 int64 int32 uint8 bool float half double long', M.functions)

--- Layers of cr.nn.
M.layers = {
  conv3d = 'use nn.conv2d of the frames', conv_transpose3d = 'use nn.conv_transpose2d of the frames',
  batch_norm = "use x * scale + shift, computed from the file's means and variances, as cr.onnx does",
  instance_norm = 'use nn.group_norm with as many groups as channels',
  dropout = 'there is no training here: at inference dropout returns x itself',
  adaptive_avg_pool2d = 'use x:mean({ 2, 3 }, true) for one pixel, nn.avg_pool2d for more',
  cross_entropy = 'there is no training here: its value is -x:log_softmax():gather(2, labels):mean()',
  lstm = 'recurrent layers are not supported: models/networks/vad.lua computes one in a loop', gru = 'recurrent layers are not supported',
  functional = 'layers are functions of nn: nn.silu(x)', Parameter = 'a weight is a tensor in a table',
  multi_head_attention_forward = 'use nn.attention(q, k, v, { heads = 8 })',
  scaled_dot_product_attention = 'use nn.attention(q, k, v)', unfold = 'use x:unfold(d, size, step)',
  adaptive_max_pool2d = 'use x:max({ 2, 3 }, true) for one pixel, nn.max_pool2d for more',
  normalize = 'use x / x:norm(2, -1, true)',
  cosine_similarity = 'use (a * b):sum(-1) / (a:norm(2, -1) * b:norm(2, -1))', huber_loss = 'use nn.l1_loss or nn.mse_loss',
  Linear = 'use nn.linear(w, x)', Conv2d = 'use nn.conv2d(w, x, options)',
  Module = 'a network is a function over a table of weights',
  Sequential = 'a network is a function over a table of weights',
  glu = 'use x:narrow(-1, 1, 1) * x:narrow(-1, 2, 1):sigmoid()', Identity = NETWORK, local_response_norm = 'use nn.rms_norm',
  GroupNorm = 'use nn.group_norm(w, x, 32)', LayerNorm = 'use nn.layer_norm(w, x)', Embedding = 'use nn.embedding(w, index)',
  BatchNorm2d = "use x * scale + shift with the file's means and variances folded in", Upsample = 'use nn.interpolate',
  MultiheadAttention = 'use nn.attention(q, k, v, { heads = 8 })', one_hot = 'use cr.eye(n):gather_rows(labels)',
  upsample = 'use nn.interpolate', embedding_bag = 'use nn.embedding(w, index)', kl_div = TRAINING, nll_loss = TRAINING,
}
same(NETWORK, 'ModuleList ModuleDict ParameterList', M.layers)
same(TRAINING, 'CrossEntropyLoss BCELoss binary_cross_entropy init utils parallel DataParallel Dropout', M.layers)
same('layers are functions with lower-case names: nn.relu(x), nn.conv1d(w, x, options), nn.avg_pool2d(x, options)',
  'ReLU SiLU GELU Softmax Conv1d ConvTranspose2d AvgPool2d MaxPool2d PixelShuffle MSELoss L1Loss', M.layers)

--- Functions of cr.cuda.
M.cards = {
  is_available = TWICE .. 'cr.cuda.available()', device_count = TWICE .. 'cr.cuda.count()', manual_seed = TWICE .. 'cr.manual_seed(seed)',
  manual_seed_all = TWICE .. 'cr.manual_seed(seed)', empty_cache = TWICE .. 'cr.trim()', Stream = 'cr.cuda.stream chooses a stream',
  Event = 'use cr.cuda.mark or cr.cuda.time', amp = M.functions.autocast, CUDAGraph = 'cr.graph(fn) records a function',
  graph = 'cr.graph(fn) records a function',
  set_device = 'use the option { device = "cuda:1" }, or :device cuda:1 at the prompt', current_device = 'use x.device',
}
same('cr.cuda.info() tells', 'get_device_name get_device_properties get_device_capability mem_get_info', M.cards)
same(MEMORY, 'memory_allocated memory_reserved max_memory_allocated max_memory_reserved memory_summary memory_stats', M.cards)
same(TWICE .. 'cr.reset_peak()', 'reset_peak_memory_stats reset_max_memory_allocated', M.cards)

--- Raises a sentence about an unknown name.
--- @param where string 'cr'
--- @param name any
--- @param instead string? what to use
--- @param known string[] the known names
function M.refuse(where, name, instead, known)
  instead = instead or errors.did_you_mean_close(name, known, math.max(1, #tostring(name) / 4),
    ('`crescent help %s` lists all names'):format(where))
  base.fail(('%s has no %s: %s'):format(where, base.printable(tostring(name)), instead))
end

return M
