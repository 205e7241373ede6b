--- Examples for help that can be run unchanged: a line of code for an operation, and its result.
--
-- They use x, v, s and picture (below). tests/help_lines_test.lua runs each line, compares its result with the one
-- given here, and reports operations without a line. A line is NAME | CODE | RESULT. Semicolons separate rows,
-- slashes separate several results; random and large results are left out.

local M = {}

--- Makes the tensors that a line uses, new for each line.
--- @return table<string, any>
function M.values()
  local cr = require 'cr'
  return {
    cr = cr, nn = cr.nn, x = cr.tensor { { 1, 2, 3 }, { 4, 5, 6 } }, v = cr.tensor { 3, 1, 2 }, s = cr.tensor { -1.5, 0, 2.5 },
    picture = cr.arange(1, 16):view(1, 4, 4, 1),
  }
end

local SHOWN = { x = 'x: 1 2 3; 4 5 6', v = 'v: 3 1 2', s = 's: -1.5 0 2.5', picture = 'picture: 4 x 4 pixels from 1 to 16' }

--- Returns the line of an operation for help, or nil.
--- @param name string 'roll', 'cr.eye', 'nn.pad'
--- @return string?
function M.text(name)
  local entry = M.by_name()[name]
  if not entry then return nil end
  local needs = {}
  for _, variable in ipairs { 'x', 'v', 's', 'picture' } do
    if entry.code:find('%f[%w_]' .. variable .. '%f[^%w_]') then needs[#needs + 1] = SHOWN[variable] end
  end
  local text = entry.code
  if entry.result ~= '' then text = ('%s gives %s'):format(text, entry.result) end
  return #needs > 0 and ('%s (%s)'):format(text, table.concat(needs, ', ')) or text
end

--- Returns all lines by their names.
--- @return table<string, table> {code, result} each
function M.by_name()
  local list = {}
  for line in M.lines:gmatch '[^\n]+' do
    local name, code, result = line:match '^(%S+) | (.-) | ?(.*)$'
    list[name] = { code = code, result = result }
  end
  return list
end

M.lines = [[
indexing | x[2] | 4 5 6
indexing.range | x[{ 1, { 2, 3 } }] | 2 3
indexing.mask | x[x:gt(2)] | 3 4 5 6
indexing.step | x[{ {}, { 1, 3, 2 } }] | 1 3; 4 6
index_select | x:index_select(2, { 3, 1 }) | 3 1; 6 4
gather | x:gather(2, cr.tensor({ { 3 }, { 1 } }, { dtype = 'i64' })) | 3; 4
gather_rows | x:gather_rows { 2, 1, 2 } | 4 5 6; 1 2 3; 4 5 6
take | x:take { 1, 6 } | 1 6
masked_fill | x:masked_fill(x:gt(4), 0) | 1 2 3; 4 0 0
masked_fill_ | x:masked_fill_(x:gt(4), 0) | 1 2 3; 4 0 0
masked_select | x:masked_select(x:gt(4)) | 5 6
nonzero | x:gt(4):nonzero() | 2 2; 2 3
where | x:where(x:gt(2), 0) | 0 0 3; 4 5 6
cr.where | cr.where(x:gt(2), x, -1) | -1 -1 3; 4 5 6
index_add_ | x:index_add_(1, { 2, 2 }, x) | 1 2 3; 10 14 18
index_copy_ | x:index_copy_(2, { 1 }, cr.zeros(2, 1)) | 0 2 3; 0 5 6
scatter_ | x:scatter_(2, cr.tensor({ { 1 }, { 3 } }, { dtype = 'i64' }), 0) | 0 2 3; 4 5 0
scatter_add_ | x:scatter_add_(2, cr.tensor({ { 1 }, { 3 } }, { dtype = 'i64' }), cr.ones(2, 1)) | 2 2 3; 4 5 7
add_ | x:add_(1) | 2 3 4; 5 6 7
sub_ | x:sub_(1) | 0 1 2; 3 4 5
mul_ | x:mul_(2) | 2 4 6; 8 10 12
div_ | x:div_(2) | 0.5 1 1.5; 2 2.5 3
zero_ | x:zero_() | 0 0 0; 0 0 0
fill_ | x:fill_(7) | 7 7 7; 7 7 7
copy_ | x:copy_(x * 2) | 2 4 6; 8 10 12
clamp_ | x:clamp_(2, 4) | 2 2 3; 4 4 4
lerp | x:lerp(x * 2, 0.5) | 1.5 3 4.5; 6 7.5 9
lerp_ | x:lerp_(x * 2, 0.5) | 1.5 3 4.5; 6 7.5 9
normal_ | x:normal_(0, 1) |
uniform_ | x:uniform_(0, 1) |
cr.zeros_like | cr.zeros_like(x) | 0 0 0; 0 0 0
cr.ones_like | cr.ones_like(x) | 1 1 1; 1 1 1
cr.empty_like | cr.empty_like(x) |
cr.full_like | cr.full_like(x, 7) | 7 7 7; 7 7 7
cr.rand_like | cr.rand_like(x) |
cr.randn_like | cr.randn_like(x) |
cr.tensor | cr.tensor { { 1, 2 }, { 3, 4 } } | 1 2; 3 4
cr.zeros | cr.zeros(2, 3) | 0 0 0; 0 0 0
cr.ones | cr.ones(2, 3) | 1 1 1; 1 1 1
cr.empty | cr.empty(2, 3) |
cr.full | cr.full({ 2, 2 }, 7) | 7 7; 7 7
cr.eye | cr.eye(3) | 1 0 0; 0 1 0; 0 0 1
cr.linspace | cr.linspace(0, 1, 5) | 0 0.25 0.5 0.75 1
cr.logspace | cr.logspace(0, 2, 3) | 1 10 100
cr.arange | cr.arange(1, 5) | 1 2 3 4 5
cr.rand | cr.rand(2, 3) |
cr.randn | cr.randn(2, 3) |
cr.randint | cr.randint(1, 7, { 4 }) |
cr.randperm | cr.randperm(5) |
cr.meshgrid | cr.meshgrid(v, cr.tensor { 1, 2 }) | 3 3; 1 1; 2 2; 1 2; 1 2; 1 2
cr.cat | cr.cat({ x, x }, 1) | 1 2 3; 4 5 6; 1 2 3; 4 5 6
cr.stack | cr.stack({ v, v }, 2) | 3 3; 1 1; 2 2
cr.lincomb | cr.lincomb({ v, v }, { 2, 0.5 }) | 7.5 2.5 5
cr.cdist | cr.cdist(x, x, 2) | 0 5.2; 5.2 0
dim | x:dim() | 2
ndim | x.ndim | 2
shape | x.shape | 2 3
size | x:size() | 2 3
numel | x:numel() | 6
T | x.T | 1 4; 2 5; 3 6
t | x:t() | 1 4; 2 5; 3 6
transpose | x:transpose(1, 2) | 1 4; 2 5; 3 6
permute | x:permute(2, 1) | 1 4; 2 5; 3 6
view | x:view(3, 2) | 1 2; 3 4; 5 6
reshape | x:reshape(-1) | 1 2 3 4 5 6
flatten | x:flatten() | 1 2 3 4 5 6
unflatten | x:unflatten(2, { 3, 1 }) | 1; 2; 3; 4; 5; 6
squeeze | x:squeeze() | 1 2 3; 4 5 6
unsqueeze | x:unsqueeze(1) | 1 2 3; 4 5 6
expand_as | x:expand_as(cr.zeros(2, 2, 3)) | 1 2 3; 4 5 6; 1 2 3; 4 5 6
expand | x:expand(2, 2, 3) | 1 2 3; 4 5 6; 1 2 3; 4 5 6
repeat_ | x:repeat_(1, 2) | 1 2 3 1 2 3; 4 5 6 4 5 6
tile | x:tile(2, 1) | 1 2 3; 4 5 6; 1 2 3; 4 5 6
repeat_interleave | x:repeat_interleave(2, 1) | 1 2 3; 1 2 3; 4 5 6; 4 5 6
chunk | x:chunk(3, 2) | 1; 4; 2; 5; 3; 6
split | x:split(2, 2) | 1 2; 4 5; 3; 6
unbind | x:unbind(1) | 1 2 3; 4 5 6
unfold | x:unfold(2, 2, 1) | 1 2; 2 3; 4 5; 5 6
flip | x:flip(2) | 3 2 1; 6 5 4
roll | x:roll(1, 2) | 3 1 2; 6 4 5
movedim | x:movedim(1, 2) | 1 4; 2 5; 3 6
narrow | x:narrow(2, 2, 2) | 2 3; 5 6
select | x:select(2, 3) | 3 6
slice | x:slice(2, 1, 3, 2) | 1 3; 4 6
diag | x:diag() | 1 5
tril | x:tril() | 1 0 0; 4 5 0
triu | x:triu() | 1 2 3; 0 5 6
% | x % 2 | 1 0 1; 0 1 0
^ | x ^ 2 | 1 4 9; 16 25 36
remainder | s:remainder(2) | 0.5 0 0.5
fmod | s:fmod(2) | -1.5 0 0.5
pow | x:pow(2) | 1 4 9; 16 25 36
sign | s:sign() | -1 0 1
abs | s:abs() | 1.5 0 2.5
neg | s:neg() | 1.5 0 -2.5
ceil | s:ceil() | -1 0 3
floor | s:floor() | -2 0 2
round | s:round() | -2 0 2
trunc | s:trunc() | -1 0 2
frac | s:frac() | -0.5 0 0.5
square | v:square() | 9 1 4
sqrt | v:sqrt() | 1.73 1 1.41
rsqrt | v:rsqrt() | 0.577 1 0.707
reciprocal | v:reciprocal() | 0.333 1 0.5
exp | v:exp() | 20.1 2.72 7.39
expm1 | s:expm1() | -0.777 0 11.2
log | v:log() | 1.1 0 0.693
log2 | v:log2() | 1.58 0 1
log10 | v:log10() | 0.477 0 0.301
log1p | v:log1p() | 1.39 0.693 1.1
sin | v:sin() | 0.141 0.841 0.909
cos | v:cos() | -0.99 0.54 -0.416
tan | v:tan() | -0.143 1.56 -2.19
asin | (s / 3):asin() | -0.524 0 0.985
acos | (s / 3):acos() | 2.09 1.57 0.586
atan | v:atan() | 1.25 0.785 1.11
sinh | s:sinh() | -2.13 0 6.05
cosh | v:cosh() | 10.1 1.54 3.76
tanh | s:tanh() | -0.905 0 0.987
erf | s:erf() | -0.966 0 1
sigmoid | s:sigmoid() | 0.182 0.5 0.924
logsigmoid | s:logsigmoid() | -1.7 -0.693 -0.0789
silu | s:silu() | -0.274 0 2.31
gelu | s:gelu() | -0.1 0 2.48
relu | s:relu() | 0 0 2.5
relu6 | s:relu6() | 0 0 2.5
elu | s:elu() | -0.777 0 2.5
softplus | s:softplus() | 0.201 0.693 2.58
leaky_relu | s:leaky_relu(0.1) | -0.15 0 2.5
mish | s:mish() | -0.298 0 2.47
hardtanh | s:hardtanh() | -1 0 1
softmax | x:softmax(1) | 0.0474 0.0474 0.0474; 0.953 0.953 0.953
log_softmax | x:log_softmax(2) | -2.41 -1.41 -0.408; -2.41 -1.41 -0.408
atan2 | v:atan2(v + 1) | 0.644 0.464 0.588
add | x:add(1) | 2 3 4; 5 6 7
sub | x:sub(1) | 0 1 2; 3 4 5
mul | x:mul(2) | 2 4 6; 8 10 12
div | x:div(2) | 0.5 1 1.5; 2 2.5 3
maximum | x:maximum(3) | 3 3 3; 4 5 6
minimum | x:minimum(3) | 1 2 3; 3 3 3
clamp | x:clamp(2, 4) | 2 2 3; 4 4 4
clamp_min | s:clamp_min(2) | 2 2 2.5
clamp_max | s:clamp_max(4) | -1.5 0 2.5
addcmul | x:addcmul(x, x, 0.5) | 1.5 4 7.5; 12 17.5 24
addcdiv | x:addcdiv(x, x, 0.5) | 1.5 2.5 3.5; 4.5 5.5 6.5
isnan | (s / 0):isnan() | 0 1 0
isinf | (s / 0):isinf() | 1 0 1
isfinite | (s / 0):isfinite() | 0 0 0
nan_to_num | (s / 0):nan_to_num(0, 9, -9) | -9 0 9
eq | x:eq(2) | 0 1 0; 0 0 0
ne | x:ne(2) | 1 0 1; 1 1 1
lt | x:lt(2) | 1 0 0; 0 0 0
le | x:le(2) | 1 1 0; 0 0 0
gt | x:gt(2) | 0 0 1; 1 1 1
ge | x:ge(2) | 0 1 1; 1 1 1
logical_and | x:logical_and(x:gt(2)) | 0 0 1; 1 1 1
logical_or | x:logical_or(x:gt(2)) | 1 1 1; 1 1 1
logical_xor | x:logical_xor(x:gt(2)) | 1 1 0; 0 0 0
logical_not | x:gt(2):logical_not() | 1 1 0; 0 0 0
any | x:gt(5):any(2) | 0 1
all | x:gt(0):all() | 1
equal | x:equal(x + 0) | true
allclose | x:allclose(x + 1e-9) | true
sum | x:sum(2) | 6 15
mean | x:mean({ 1, 2 }, true) | 3.5
prod | x:prod(1) | 4 10 18
norm | x:norm(2, 2) | 3.74 8.77
max | x:max(2) | 3 6
min | x:min(1) | 1 2 3
max_at | x:max_at(2) | 3 6 / 3 3
min_at | x:min_at(2) | 1 4 / 1 1
argmax | x:argmax(2) | 3 3
argmin | x:argmin() | 1
median | x:median(2) | 2 5
quantile | x:quantile(0.5, 2) | 2 5
kthvalue | x:kthvalue(2, 2) | 2 5 / 2 2
logsumexp | x:logsumexp(2) | 3.41 6.41
var | x:var(2, false, 0) | 0.667 0.667
std | x:std(2) | 0.816 0.816
cumsum | x:cumsum(2) | 1 3 6; 4 9 15
cumprod | x:cumprod(1) | 1 2 3; 4 10 18
diff | x:diff(2) | 1 1; 1 1
sort | v:sort() | 1 2 3 / 2 3 1
argsort | v:argsort() | 2 3 1
topk | v:topk(2) | 3 2 / 1 3
unique | v:unique() | 1 2 3
histc | v:histc(3, 1, 3) | 1 1 1
bincount | cr.tensor({ 1, 3, 3 }, { dtype = 'i64' }):bincount() | 0 1 0 2
matmul | x:matmul(x:t()) | 14 32; 32 77
mm | x:mm(x:t()) | 14 32; 32 77
mv | x:mv(v) | 11 29
bmm | x:unsqueeze(1):bmm(x:t():unsqueeze(1)) | 14 32; 32 77
dot | v:dot(v) | 14
outer | v:outer(v) | 9 3 6; 3 1 2; 6 2 4
trace | x:trace() | 6
cr.einsum | cr.einsum('ik,jk->ij', x, x) | 14 32; 32 77
cr.rfft | cr.rfft(v) | 6 1.5 / 0 0.866
cr.irfft | cr.irfft(cr.rfft(cr.arange(1, 4))) | 1 2 3 4
float | x:float() | 1 2 3; 4 5 6
half | x:half() | 1 2 3; 4 5 6
bfloat16 | x:bfloat16() | 1 2 3; 4 5 6
long | x:long() | 1 2 3; 4 5 6
bool | x:bool() | 1 1 1; 1 1 1
cpu | x:cpu() | 1 2 3; 4 5 6
to | x:to 'f16' | 1 2 3; 4 5 6
tolist | x:tolist() | 1 2 3; 4 5 6
item | x:sum():item() | 21
nn.conv1d | nn.conv1d({ weight = cr.ones(1, 2, 3) }, x:unsqueeze(1)) | 21
nn.conv2d | nn.conv2d({ weight = cr.ones(1, 3, 3, 1) }, picture, { padding = 1 }) |
nn.conv_transpose2d | nn.conv_transpose2d({ weight = cr.ones(1, 2, 2, 1) }, picture, { stride = 2 }) |
nn.avg_pool2d | nn.avg_pool2d(picture, { kernel = 2 }) | 3.5; 5.5; 11.5; 13.5
nn.max_pool2d | nn.max_pool2d(picture, { kernel = 2 }) | 6; 8; 14; 16
nn.rms_norm | nn.rms_norm({ weight = cr.ones(3) }, x) | 0.463 0.926 1.39; 0.79 0.987 1.18
nn.layer_norm | nn.layer_norm({ weight = cr.ones(3), bias = cr.zeros(3) }, x) | -1.22 0 1.22; -1.22 0 1.22
nn.group_norm | nn.group_norm({ weight = cr.ones(3), bias = cr.zeros(3) }, x, 1) | -1.22 0 1.22; -1.22 0 1.22
nn.embedding | nn.embedding({ weight = x }, cr.tensor({ 2, 1 }, { dtype = 'i64' })) | 4 5 6; 1 2 3
nn.grid_sample | nn.grid_sample(picture, cr.zeros(1, 1, 1, 2)) | 8.5
nn.pixel_shuffle | nn.pixel_shuffle(cr.arange(1, 4):view(1, 1, 1, 4), 2) | 1; 2; 3; 4
nn.pad | nn.pad(x, { 0, 1 }, { 0, 1 }, 'reflect') | 2 1 2 3 2; 5 4 5 6 5
nn.interpolate | nn.interpolate(picture, { size = { 2, 2 }, mode = 'bilinear' }) | 3.5; 5.5; 11.5; 13.5
nn.resize | nn.resize(picture, 2, 2, 'bilinear') | 3.5; 5.5; 11.5; 13.5
nn.upsample_nearest | nn.upsample_nearest(picture, 2) |
nn.attention | nn.attention(x, x, x, { mask = cr.tensor { { 1, 1 }, { 0, 1 } }:bool() }) | 4 5 6; 4 5 6
nn.linear | nn.linear({ weight = x, bias = cr.zeros(2) }, v:unsqueeze(1)) | 11 29
nn.mse_loss | nn.mse_loss(x, x + 1) | 1
nn.l1_loss | nn.l1_loss(x, x + 1) | 1
nn.ssim | nn.ssim(cr.ones(1, 16, 16, 1), cr.ones(1, 16, 16, 1)) | 1
nn.silu | nn.silu(s) | -0.274 0 2.31
nn.gelu | nn.gelu(s) | -0.1 0 2.48
nn.relu | nn.relu(s) | 0 0 2.5
nn.softmax | nn.softmax(x) | 0.09 0.245 0.665; 0.09 0.245 0.665
cr.from_pointer | cr.from_pointer(v:pointer(), { 3 }, 'f32', v) | 3 1 2
cr.generator | cr.generator(1) |
cr.manual_seed | cr.manual_seed(1247) |
cr.skip_randn | cr.skip_randn(cr.generator(1), 2) |
nn.geglu | nn.geglu(x:t()) | 4; 10; 18
nn.group_norm_silu | nn.group_norm_silu({ weight = cr.ones(3), bias = cr.zeros(3) }, x, 1) | -0.278 0 0.947; -0.278 0 0.947
nn.posterior_sample | nn.posterior_sample(v, v, nil, 2) | 6 2 4
nn.upsample_conv2d | nn.upsample_conv2d({ weight = cr.ones(1, 3, 3, 1) }, picture) |
nn.linear_geglu | nn.linear_geglu({ weight = cr.ones(2, 3), bias = cr.zeros(2) }, x) | 36; 225
nn.timestep_embedding | nn.timestep_embedding({ 1, 500 }, 4) | 0.54 1 0.841 0.01; -0.884 0.284 -0.468 -0.959
]]

return M
