--- @meta
--- The methods that the table of operations makes, and the functions that `cr` takes from other modules. `make docs` writes
--- this file; lua-language-server reads it, and no program does.
-- luacheck: ignore

--- C's structs, whose fields core/crescent.h declares.
--- @class ffi.cdata*
--- @field [any] any

--- @class Tensor
local Tensor = {}

--- a + b, broadcast; b may be a number
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:add(b, out) end

--- In place: a + b, broadcast; b may be a number
--- @param b Tensor|number
--- @return Tensor
function Tensor:add_(b) end

--- a - b
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:sub(b, out) end

--- In place: a - b
--- @param b Tensor|number
--- @return Tensor
function Tensor:sub_(b) end

--- a * b
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:mul(b, out) end

--- In place: a * b
--- @param b Tensor|number
--- @return Tensor
function Tensor:mul_(b) end

--- a / b
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:div(b, out) end

--- In place: a / b
--- @param b Tensor|number
--- @return Tensor
function Tensor:div_(b) end

--- a ^ b
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:pow(b, out) end

--- In place: a ^ b
--- @param b Tensor|number
--- @return Tensor
function Tensor:pow_(b) end

--- the greater of both
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:maximum(b, out) end

--- In place: the greater of both
--- @param b Tensor|number
--- @return Tensor
function Tensor:maximum_(b) end

--- the smaller of both
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:minimum(b, out) end

--- In place: the smaller of both
--- @param b Tensor|number
--- @return Tensor
function Tensor:minimum_(b) end

--- a % b: remainder of the floored division, with the sign of b; 0 for an integer by 0
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:remainder(b, out) end

--- In place: a % b: remainder of the floored division, with the sign of b; 0 for an integer by 0
--- @param b Tensor|number
--- @return Tensor
function Tensor:remainder_(b) end

--- remainder of the truncated division, with the sign of a; 0 for an integer by 0
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:fmod(b, out) end

--- In place: remainder of the truncated division, with the sign of a; 0 for an integer by 0
--- @param b Tensor|number
--- @return Tensor
function Tensor:fmod_(b) end

--- the angle of the point (b, a) in radians, -pi to pi
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:atan2(b, out) end

--- In place: the angle of the point (b, a) in radians, -pi to pi
--- @param b Tensor|number
--- @return Tensor
function Tensor:atan2_(b) end

--- bool: equal
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:eq(b, out) end

--- In place: bool: equal
--- @param b Tensor|number
--- @return Tensor
function Tensor:eq_(b) end

--- bool: different
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:ne(b, out) end

--- In place: bool: different
--- @param b Tensor|number
--- @return Tensor
function Tensor:ne_(b) end

--- bool: less
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:lt(b, out) end

--- In place: bool: less
--- @param b Tensor|number
--- @return Tensor
function Tensor:lt_(b) end

--- bool: less or equal
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:le(b, out) end

--- In place: bool: less or equal
--- @param b Tensor|number
--- @return Tensor
function Tensor:le_(b) end

--- bool: greater
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:gt(b, out) end

--- In place: bool: greater
--- @param b Tensor|number
--- @return Tensor
function Tensor:gt_(b) end

--- bool: greater or equal
--- @param b Tensor|number
--- @param out Tensor? filled in place of a new one
--- @return Tensor
function Tensor:ge(b, out) end

--- In place: bool: greater or equal
--- @param b Tensor|number
--- @return Tensor
function Tensor:ge_(b) end

--- -x
--- @return Tensor
function Tensor:neg() end

--- In place: -x
--- @return Tensor
function Tensor:neg_() end

--- |x|
--- @return Tensor
function Tensor:abs() end

--- In place: |x|
--- @return Tensor
function Tensor:abs_() end

--- -1, 0 or 1
--- @return Tensor
function Tensor:sign() end

--- In place: -1, 0 or 1
--- @return Tensor
function Tensor:sign_() end

--- e^x
--- @return Tensor
function Tensor:exp() end

--- In place: e^x
--- @return Tensor
function Tensor:exp_() end

--- the natural logarithm
--- @return Tensor
function Tensor:log() end

--- In place: the natural logarithm
--- @return Tensor
function Tensor:log_() end

--- the logarithm to base 10
--- @return Tensor
function Tensor:log10() end

--- In place: the logarithm to base 10
--- @return Tensor
function Tensor:log10_() end

--- the logarithm to base 2
--- @return Tensor
function Tensor:log2() end

--- In place: the logarithm to base 2
--- @return Tensor
function Tensor:log2_() end

--- log(1 + x), exact for small x
--- @return Tensor
function Tensor:log1p() end

--- In place: log(1 + x), exact for small x
--- @return Tensor
function Tensor:log1p_() end

--- e^x - 1, exact for small x
--- @return Tensor
function Tensor:expm1() end

--- In place: e^x - 1, exact for small x
--- @return Tensor
function Tensor:expm1_() end

--- the square root
--- @return Tensor
function Tensor:sqrt() end

--- In place: the square root
--- @return Tensor
function Tensor:sqrt_() end

--- 1 / sqrt(x)
--- @return Tensor
function Tensor:rsqrt() end

--- In place: 1 / sqrt(x)
--- @return Tensor
function Tensor:rsqrt_() end

--- the sine of radians
--- @return Tensor
function Tensor:sin() end

--- In place: the sine of radians
--- @return Tensor
function Tensor:sin_() end

--- the cosine of radians
--- @return Tensor
function Tensor:cos() end

--- In place: the cosine of radians
--- @return Tensor
function Tensor:cos_() end

--- the hyperbolic tangent
--- @return Tensor
function Tensor:tanh() end

--- In place: the hyperbolic tangent
--- @return Tensor
function Tensor:tanh_() end

--- the error function
--- @return Tensor
function Tensor:erf() end

--- In place: the error function
--- @return Tensor
function Tensor:erf_() end

--- 1 / (1 + e^-x)
--- @return Tensor
function Tensor:sigmoid() end

--- In place: 1 / (1 + e^-x)
--- @return Tensor
function Tensor:sigmoid_() end

--- x * sigmoid(x)
--- @return Tensor
function Tensor:silu() end

--- In place: x * sigmoid(x)
--- @return Tensor
function Tensor:silu_() end

--- x * (1 + erf(x / sqrt 2)) / 2
--- @return Tensor
function Tensor:gelu() end

--- In place: x * (1 + erf(x / sqrt 2)) / 2
--- @return Tensor
function Tensor:gelu_() end

--- max(x, 0)
--- @return Tensor
function Tensor:relu() end

--- In place: max(x, 0)
--- @return Tensor
function Tensor:relu_() end

--- the greatest whole number not above x
--- @return Tensor
function Tensor:floor() end

--- In place: the greatest whole number not above x
--- @return Tensor
function Tensor:floor_() end

--- the least whole number not below x
--- @return Tensor
function Tensor:ceil() end

--- In place: the least whole number not below x
--- @return Tensor
function Tensor:ceil_() end

--- rounds towards zero
--- @return Tensor
function Tensor:trunc() end

--- In place: rounds towards zero
--- @return Tensor
function Tensor:trunc_() end

--- rounds to the nearest whole number, half to even
--- @return Tensor
function Tensor:round() end

--- In place: rounds to the nearest whole number, half to even
--- @return Tensor
function Tensor:round_() end

--- x * x
--- @return Tensor
function Tensor:square() end

--- In place: x * x
--- @return Tensor
function Tensor:square_() end

--- 1 / x
--- @return Tensor
function Tensor:reciprocal() end

--- In place: 1 / x
--- @return Tensor
function Tensor:reciprocal_() end

--- In place: true where x is false
--- @return Tensor
function Tensor:logical_not_() end

--- the sum: x:sum(), x:sum(2), x:sum({ 1, 2 }, true)
--- @param dims integer|integer[]|nil the dimensions, or all
--- @param keep boolean? whether they stay, with size 1
--- @return Tensor
function Tensor:sum(dims, keep) end

--- the mean
--- @param dims integer|integer[]|nil the dimensions, or all
--- @param keep boolean? whether they stay, with size 1
--- @return Tensor
function Tensor:mean(dims, keep) end

--- the maximum; nan if any element is
--- @param dims integer|integer[]|nil the dimensions, or all
--- @param keep boolean? whether they stay, with size 1
--- @return Tensor
function Tensor:max(dims, keep) end

--- the minimum; nan if any element is
--- @param dims integer|integer[]|nil the dimensions, or all
--- @param keep boolean? whether they stay, with size 1
--- @return Tensor
function Tensor:min(dims, keep) end

--- the index of the maximum, from 1 on: along one dimension, or of all elements
--- @param dims integer|integer[]|nil the dimensions, or all
--- @param keep boolean? whether they stay, with size 1
--- @return Tensor
function Tensor:argmax(dims, keep) end

--- the index of the minimum, from 1 on: along one dimension, or of all elements
--- @param dims integer|integer[]|nil the dimensions, or all
--- @param keep boolean? whether they stay, with size 1
--- @return Tensor
function Tensor:argmin(dims, keep) end

--- @class cr
local cr = {}

cr.all = require 'cr.loop'.all
cr.arange = require 'cr.tensor.creation'.arange
cr.await = require 'cr.loop'.await
cr.cat = require 'cr.tensor.creation'.cat
cr.cdist = require 'cr.tensor.matrices'.cdist
cr.channel = require 'cr.loop'.channel
cr.cuda = require 'cr.cuda'
cr.einsum = require 'cr.tensor.matrices'.einsum
cr.empty = require 'cr.tensor.creation'.empty
cr.empty_like = require 'cr.tensor.creation'.empty_like
cr.eye = require 'cr.tensor.creation'.eye
cr.from_pointer = require 'cr.tensor.creation'.from_pointer
cr.full = require 'cr.tensor.creation'.full
cr.full_like = require 'cr.tensor.creation'.full_like
cr.fuse = require 'cr.kernel'.fuse
cr.generator = require 'cr.tensor.creation'.generator
cr.go = require 'cr.loop'.go
cr.graph = require 'cr.graph'.new
cr.irfft = require 'cr.tensor.fourier'.irfft
cr.kernel = require 'cr.kernel'.new
cr.lincomb = require 'cr.tensor.creation'.lincomb
cr.linspace = require 'cr.tensor.creation'.linspace
cr.logspace = require 'cr.tensor.creation'.logspace
cr.manual_seed = require 'cr.tensor.creation'.manual_seed
cr.media = require 'cr.media'
cr.meshgrid = require 'cr.tensor.creation'.meshgrid
cr.nn = require 'cr.nn'
cr.ones = require 'cr.tensor.creation'.ones
cr.ones_like = require 'cr.tensor.creation'.ones_like
cr.onnx = require 'cr.graphs.onnx'
cr.rand = require 'cr.tensor.creation'.rand
cr.rand_like = require 'cr.tensor.creation'.rand_like
cr.randint = require 'cr.tensor.creation'.randint
cr.randn = require 'cr.tensor.creation'.randn
cr.randn_like = require 'cr.tensor.creation'.randn_like
cr.randperm = require 'cr.tensor.creation'.randperm
cr.rfft = require 'cr.tensor.fourier'.rfft
cr.run = require 'cr.loop'.run
cr.skip_randn = require 'cr.tensor.creation'.skip_randn
cr.sleep = require 'cr.loop'.sleep
cr.stack = require 'cr.tensor.creation'.stack
cr.tensor = require 'cr.tensor.creation'.tensor
cr.weights = require 'cr.weights'
cr.where = require 'cr.tensor.creation'.where
cr.yield = require 'cr.loop'.yield
cr.zeros = require 'cr.tensor.creation'.zeros
cr.zeros_like = require 'cr.tensor.creation'.zeros_like
