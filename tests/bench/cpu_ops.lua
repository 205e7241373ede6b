--- Times of the CPU's heavy operations on this model's shapes: the nano UNet's step at 32x32 latents
-- (2 x 16 frames), the full-size VAE's decode of a 256 px frame, Whisper tiny on 30 s.
--
--   build/crescent tests/bench/cpu_ops.lua [PATTERN] [--json]
--
-- Each shape is checked first (a few results against float64), then warmed up, then timed; printed are the median,
-- the minimum and GFLOP/s. tests/bench/torch_ops.py times the same list in PyTorch; `tests/bench/torch_ops.py
-- build/crescent` prints both.
--
-- Tiny: ^temporal --seconds 0.01
local cr = require 'cr'
local nn = require 'cr.nn'
local uv = require 'luv'

local given = require 'tests.bench.options'.read("The CPU's heavy operations.", {
  { '--json', 'flag', help = 'times as JSON' },
  { '--seconds', 'number', default = 0.15, min = 0, help = 'that each is measured at least' },
}, { { 'pattern', 'string', optional = true, help = 'only shapes whose line matches this Lua pattern' } })

local function median_time(fn, seconds)
  for _ = 1, 3 do fn() end
  local times, start = {}, uv.hrtime()
  repeat
    local t = uv.hrtime()
    fn()
    times[#times + 1] = (uv.hrtime() - t) * 1e-6
  until #times >= 7 and uv.hrtime() - start > seconds * 1e9 or #times >= 1000
  table.sort(times)
  return times[math.floor((#times + 1) / 2)], times[1]
end

-- A number of x at 0-based indices.
local function at(x, ...)
  local offset = 0
  local c = x.c
  for k, i in ipairs { ... } do offset = offset + i * tonumber(c.stride[k - 1]) end
  return x:pointer()[offset]
end

local function check(name, got, expected, scale)
  local near = math.abs(got - expected) <= 1e-5 * scale -- false for a nan
  if not near then
    error(('%s: %.9g, expected %.9g'):format(name, got, expected))
  end
end

local makers = {}

-- m, k, n
function makers.linear(name, m, k, n)
  local w, x = { weight = cr.randn(n, k) * k ^ -0.5, bias = cr.randn(n) }, cr.randn(m, k)
  local y = nn.linear(w, x)
  for _ = 1, 5 do
    local i, j, sum = math.random(0, m - 1), math.random(0, n - 1), 0
    for l = 0, k - 1 do sum = sum + at(x, i, l) * at(w.weight, j, l) end
    check(name, at(y, i, j), sum + at(w.bias, j), 1 + math.abs(sum))
  end
  return function() nn.linear(w, x):free() end, 2 * m * k * n
end

-- frames, height, width, channels in, out, kernel, stride, groups
function makers.conv(name, n, h, wd, c, o, k, s, g)
  g = g or 1
  local w = { weight = cr.randn(o, k, k, c / g) * (k * k * c / g) ^ -0.5, bias = cr.randn(o) }
  local x, p = cr.randn(n, h, wd, c), math.floor(k / 2)
  local options = { stride = s, padding = p, groups = g }
  local y = nn.conv2d(w, x, options)
  local oh, ow = y:size(2), y:size(3)
  for _ = 1, 5 do
    local b, i, j, q = math.random(0, n - 1), math.random(0, oh - 1), math.random(0, ow - 1), math.random(0, o - 1)
    local sum, first = at(w.bias, q), math.floor(q / (o / g)) * (c / g)
    for r = 0, k - 1 do
      for z = 0, k - 1 do
        local u, v = i * s + r - p, j * s + z - p
        if u >= 0 and u < h and v >= 0 and v < wd then
          for l = 0, c / g - 1 do sum = sum + at(x, b, u, v, first + l) * at(w.weight, q, r, z, l) end
        end
      end
    end
    check(name, at(y, b, i, j, q), sum, 1 + math.abs(sum))
  end
  return function() nn.conv2d(w, x, options):free() end, 2 * n * oh * ow * o * k * k * c / g
end

local function attention(name, q, k, v, heads)
  local y = nn.attention(q, k, v, { heads = heads })
  local d, tokens = q:size(-1) / heads, k:size(-2)
  local function flat(x) return x:contiguous():view(-1, x:size(-2), x:size(-1)) end
  local fq, fk, fv, fy = flat(q), flat(k), flat(v), flat(y)
  for _ = 1, 5 do
    local b, i, l, h = math.random(0, fq:size(1) - 1), math.random(0, fq:size(2) - 1), math.random(0, d - 1),
        math.random(0, heads - 1)
    local sum, total = 0, 0
    for j = 0, tokens - 1 do
      local s = 0
      for m = h * d, h * d + d - 1 do s = s + at(fq, b, i, m) * at(fk, b, j, m) end
      local e = math.exp(s / math.sqrt(d))
      sum, total = sum + e * at(fv, b, j, h * d + l), total + e
    end
    check(name, at(fy, b, i, h * d + l), sum / total, 1)
  end
  return function() nn.attention(q, k, v, { heads = heads }):free() end, 4 * q:numel() * tokens
end

-- batch, queries, keys, channels, heads
function makers.attention(name, b, t, s, c, heads)
  return attention(name, cr.randn(b, t, c), cr.randn(b, s, c), cr.randn(b, s, c), heads)
end

-- batch, frames, positions, channels, heads: over the frames of each position
function makers.temporal(name, b, f, hw, c, heads)
  local function tokens() return cr.randn(b, f, hw, c):permute(1, 3, 2, 4) end
  return attention(name, tokens(), tokens(), tokens(), heads)
end

-- rows, channels of the result
function makers.geglu(name, m, d)
  local x = cr.randn(m, 2 * d)
  local y = nn.geglu(x)
  local g = at(x, 0, d)
  check(name, at(y, 0, 0), (at(x, 0, 0) * cr.full({ 1 }, g, { dtype = 'f64' }):gelu():item()), 1)
  return function() nn.geglu(x):free() end, 0
end

local list = assert(io.open(((arg and arg[0] or 'tests/bench/cpu_ops.lua'):gsub('cpu_ops%.lua$', 'ops.txt'))))
local results = {}
for line in list:lines() do
  local kind, rest = line:match '^(%a+)%s+(.*)$'
  if kind and (not given.pattern or line:find(given.pattern)) then
    local numbers = {}
    for x in rest:gmatch '%d+' do numbers[#numbers + 1] = tonumber(x) end
    local name = line:gsub('%s*#.*', '')
    cr.scope(function()
      local fn, flops = makers[kind](name, unpack(numbers))
      local median, shortest = median_time(fn, given.seconds)
      results[#results + 1] = ('%q: [%.4f, %.4f]'):format(name, median, shortest)
      if not given.json then
        print(('%-36s %9.3f ms  (least %9.3f)  %7.1f GFLOP/s'):format(name, median, shortest, flops / median * 1e-6))
      end
    end)
    collectgarbage()
  end
end
list:close()
if given.json then print('{' .. table.concat(results, ', ') .. '}') end
