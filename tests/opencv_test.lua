--- OpenCV's arithmetic on bytes, which prepares the inputs of InsightFace's networks: linear resizing and warping,
--- bit for bit.

local t = require 'tests.support.tap'
local nn = require 'cr.nn'
local image = require 'cr.image'
local ffi = require 'ffi'
local pictures = require 'tests.support.pictures'

local picture, reader, clamp, worst = pictures.picture, pictures.reader, pictures.clamp, pictures.worst

local function half_even(v)
  local low = math.floor(v)
  local rest = v - low
  return (rest > 0.5 or rest == 0.5 and low % 2 == 1) and low + 1 or low
end

--- OpenCV's linear filter of bytes on one axis: two source indices and their weights, which sum to 2^11.
local function opencv_taps(i, n, m, across)
  local at = tonumber(ffi.cast('float', (i + 0.5) * (1 / (m / n)) - 0.5))
  local first = math.floor(at)
  local f = at - first
  if across and (first < 0 or first >= n - 1) then f = 0 end
  return clamp(first, 0, n - 1), clamp(first + 1, 0, n - 1), half_even((1 - f) * 2048), half_even(f * 2048)
end

t.test("linear resize of u8 is OpenCV's fixed-point arithmetic: halving is a mean, equal size a copy", function()
  local halves = { { 12, 8, 3, 6, 4 }, { 9, 7, 3, 9, 7 } }
  for _, s in ipairs { { 28, 21, 3, 25, 26 }, { 9, 13, 3, 40, 7 }, { 5, 5, 1, 9, 3 }, { 37, 100, 3, 16, 45 }, { 1, 1, 2, 4, 3 },
    halves[1], halves[2] } do
    local x = picture('opencv', s[1], s[2], s[3], 'u8')
    local y = nn.resize(x, s[4], s[5], 'linear')
    local at = reader(x)
    t.equal(worst(y, function(r, i, c)
      local top, bottom, wt, wb = opencv_taps(r, s[1], s[4], false)
      local left, right, wl, wr = opencv_taps(i, s[2], s[5], true)
      local a = math.floor((at(top, left, c) * wl + at(top, right, c) * wr) / 16)
      local b = math.floor((at(bottom, left, c) * wl + at(bottom, right, c) * wr) / 16)
      return math.floor((math.floor(wt * a / 65536) + math.floor(wb * b / 65536) + 2) / 4)
    end), 0, table.concat(s, ' '))
  end
  local s = halves[1]
  local x = picture('opencv', s[1], s[2], s[3], 'u8')
  local at = reader(x)
  t.equal(worst(nn.resize(x, s[4], s[5], 'linear'), function(r, i, c)
    return math.floor((at(2 * r, 2 * i, c) + at(2 * r + 1, 2 * i, c) + at(2 * r, 2 * i + 1, c) + at(2 * r + 1, 2 * i + 1, c) + 2) / 4)
  end), 0, 'half the size')
  t.near(nn.resize(x, 12, 8, 'linear'), x, 0, 'its own size')
  local floats = x:to 'f32'
  t.near(nn.resize(floats, 5, 11, 'linear'), nn.resize(floats, 5, 11, 'bilinear'), 0, 'floats are bilinear')
end)

local maps = {
  { 1, 0, 0, 0, 1, 0 },
  { 1.7, 0.4, -3.2, -0.5, 1.9, 4.7 },
  { 0.3, -0.2, 9.5, 0.15, 0.4, 2.25 },
  { -0.9, 0.1, 20, 0.2, -1.1, 25 },
}

t.test("warp_fixed is OpenCV's fixed-point arithmetic: positions in 1/32 pixel, black outside", function()
  for k, m in ipairs(maps) do
    local x = picture('warp_fixed' .. k, 19, 23, 3, 'u8')
    local at = reader(x)
    local d = 1 / (m[1] * m[5] - m[2] * m[4])
    local a, b, e, f = m[5] * d, -m[2] * d, -m[4] * d, m[1] * d
    local u, v = -a * m[3] - b * m[6], -e * m[3] - f * m[6]
    local function pixel(y, i, c) return y >= 0 and y < 19 and i >= 0 and i < 23 and at(y, i, c) or 0 end
    t.equal(worst(image.warp_fixed(x, m, 29, 33), function(r, i, c)
      local px = math.floor((half_even((b * r + u) * 1024) + 16 + half_even(a * i * 1024)) / 32)
      local py = math.floor((half_even((f * r + v) * 1024) + 16 + half_even(e * i * 1024)) / 32)
      local left, top, fx, fy = math.floor(px / 32), math.floor(py / 32), px % 32, py % 32
      local sum = (32 - fx) * (32 - fy) * pixel(top, left, c) + fx * (32 - fy) * pixel(top, left + 1, c) +
        (32 - fx) * fy * pixel(top + 1, left, c) + fx * fy * pixel(top + 1, left + 1, c)
      return math.floor((sum * 32 + 16384) / 32768)
    end), 0, 'map ' .. k)
  end
  local far = image.warp_fixed(picture('far', 4, 4, 3, 'u8'), { 1e-9, 0, 1e9, 0, 1e-9, -1e9 }, 5, 5)
  t.equal(far:to 'f32':abs():max():item(), 0, 'far outside')
end)

t.done()
