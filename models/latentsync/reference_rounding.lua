--- Face alignment with the reference's rounding.
--
-- LatentSync computes a face's matrix and its warp map in single precision, through LAPACK's singular value
-- decomposition and inverse. That moves a crop by up to 1e-4 pixels, which is invisible, but changes one byte in some
-- thousands, and the sampled latents then differ by 1e-4. To get the same bytes, the steps below round where the
-- reference does: every operation in single precision, in LAPACK's order. In exact arithmetic this is the
-- least-squares similarity transform between the points, and the inverse of a matrix.
-- similarity between the points, and the inverse of a matrix.

local ffi = require 'ffi'

local M = {}

local single = ffi.new 'float[1]'

--- x rounded to single precision.
local function f32(x)
  single[0] = x
  return single[0]
end

local function copysign(x, sign)
  x = math.abs(x)
  return (sign < 0 or 1 / sign < 0) and -x or x
end

--- Singular vectors of an upper triangular 2x2 matrix [f g; 0 h] (LAPACK's slasv2).
--- @return number sine and cosine of the right rotation, then of the left; the singular values' signs
local function triangular_svd(f, g, h)
  local ft, fa, ht, ha = f, math.abs(f), h, math.abs(h)
  local largest, swapped = 1, ha > fa
  if swapped then
    largest = 3
    ft, ht, fa, ha = ht, ft, ha, fa
  end
  local clt, crt, slt, srt = 1, 1, 0, 0
  if g ~= 0 then
    if math.abs(g) > fa then largest = 2 end
    local d = f32(fa - ha)
    local l = d == fa and 1 or f32(d / fa)
    local m = f32(g / ft)
    local t = f32(2 - l)
    local mm, tt = f32(m * m), f32(t * t)
    local s = f32(math.sqrt(f32(tt + mm)))
    local r = l == 0 and math.abs(m) or f32(math.sqrt(f32(f32(l * l) + mm)))
    local a = f32(0.5 * f32(s + r))
    if mm == 0 then
      t = l == 0 and copysign(2, ft) * copysign(1, g) or f32(f32(g / copysign(d, ft)) + f32(m / t))
    else
      t = f32(f32(f32(m / f32(s + t)) + f32(m / f32(r + l))) * f32(1 + a))
    end
    l = f32(math.sqrt(f32(f32(t * t) + 4)))
    crt, srt = f32(2 / l), f32(t / l)
    clt = f32(f32(crt + f32(srt * m)) / a)
    slt = f32(f32(f32(ht / ft) * srt) / a)
  end
  local csl, snl, csr, snr = clt, slt, crt, srt
  if swapped then csl, snl, csr, snr = srt, crt, slt, clt end
  local sign
  if largest == 1 then sign = copysign(1, csr) * copysign(1, csl) * copysign(1, f)
  elseif largest == 2 then sign = copysign(1, snr) * copysign(1, csl) * copysign(1, g)
  else sign = copysign(1, snr) * copysign(1, snl) * copysign(1, h) end
  return snr, csr, snl, csl, sign, sign * copysign(1, f) * copysign(1, h)
end

--- The rotation V U' of the singular value decomposition U S V' of [a11 a12; a21 a22]: a Householder reflection makes
--- it triangular, rotations make that diagonal. If V U' is a reflection, V's second vector is negated.
--- @return number, number, number, number row by row
local function rotation(a11, a12, a21, a22)
  local high, low = math.max(math.abs(a11), math.abs(a21)), math.min(math.abs(a11), math.abs(a21))
  local q = f32(low / high)
  local norm = f32(high * f32(math.sqrt(f32(1 + f32(q * q)))))
  local beta = -copysign(norm, a11)
  local tau = f32(f32(beta - a11) / beta)
  local v = f32(a21 * f32(1 / f32(a11 - beta)))
  local w = f32(a12 + f32(v * a22))
  local tw = f32(tau * w)
  local snr, csr, snl, csl, sign1, sign2 = triangular_svd(beta, f32(a12 - tw), f32(a22 - f32(v * tw)))
  local v11, v21, v12, v22 = csr * sign1, snr * sign1, -snr * sign2, csr * sign2
  local function reflected(x, y)
    local p = f32(tau * f32(x + f32(v * y)))
    return f32(x - p), f32(y - f32(v * p))
  end
  local u11, u21 = reflected(csl, snl)
  local u12, u22 = reflected(-snl, csl)
  local function product()
    return f32(f32(v11 * u11) + f32(v12 * u12)), f32(f32(v11 * u21) + f32(v12 * u22)),
      f32(f32(v21 * u11) + f32(v22 * u12)), f32(f32(v21 * u21) + f32(v22 * u22))
  end
  local r11, r12, r21, r22 = product()
  if r11 * r22 - r12 * r21 < 0 then
    v12, v22 = -v12, -v22
    return product()
  end
  return r11, r12, r21, r22
end

--- Three points relative to their mean, divided by the standard deviation of all six numbers.
local function normalized(points)
  local p = {}
  for i = 1, 3 do p[2 * i - 1], p[2 * i] = f32(points[i][1]), f32(points[i][2]) end
  local mx, my = f32(f32(f32(p[1] + p[3]) + p[5]) / 3), f32(f32(f32(p[2] + p[4]) + p[6]) / 3)
  local mean, square = 0, 0
  for i = 1, 5, 2 do p[i], p[i + 1] = f32(p[i] - mx), f32(p[i + 1] - my) end
  for i = 1, 6 do mean = mean + p[i] / 6 end
  for i = 1, 6 do square = square + (p[i] - mean) ^ 2 end
  local deviation = f32(math.sqrt(square / 5))
  for i = 1, 6 do p[i] = f32(p[i] / deviation) end
  return p, mx, my, deviation
end

--- The similarity transform that maps three points to three others, and the bias of the third point.
--- @param points number[][] {{x, y} x 3}, integers
--- @param template number[][]
--- @param last number[]? the previous frame's bias; nil for the first frame
--- @param smooth boolean whether the bias is added
--- @return number[]? matrix six numbers, row by row; nil if the points coincide or are collinear
--- @return number[] bias
function M.matrix(points, template, last, smooth)
  local p, px, py, s1 = normalized(points)
  local q, qx, qy, s2 = normalized(template)
  if s1 == 0 then return nil end
  local function covariance(i, j)
    return f32(f32(f32(p[i] * q[j]) + f32(p[i + 2] * q[j + 2])) + f32(p[i + 4] * q[j + 4]))
  end
  local r11, r12, r21, r22 = rotation(covariance(1, 1), covariance(1, 2), covariance(2, 1), covariance(2, 2))
  if r11 ~= r11 then return nil end
  local scale = f32(s2 / s1)
  local function shift(c, a, b) return f32(c - f32(scale * f32(f32(a * px) + f32(b * py)))) end
  local m = { f32(scale * r11), f32(scale * r12), shift(qx, r11, r12), f32(scale * r21), f32(scale * r22), shift(qy, r21, r22) }
  local bias = { f32(q[5] - p[5]), f32(q[6] - p[6]) }
  if smooth then
    if last then
      for i = 1, 2 do bias[i] = f32(f32(last[i] * f32(0.2)) + f32(bias[i] * f32(0.8))) end
    end
    m[3], m[6] = f32(m[3] + bias[1]), f32(m[6] + bias[2])
  end
  return m, bias
end

--- Where the pixels of a warped image lie in the source: both images are mapped to -1..1, and the matrix between them
--- is inverted by elimination.
--- @param m number[] source pixels to result pixels
--- @param W integer source width
--- @param H integer source height
--- @param width integer result width
--- @param height integer
--- @return number[]? theta for image.grid_sample; nil if this order of elimination does not apply
function M.warp_theta(m, W, H, width, height)
  if W < 2 or H < 2 then return nil end
  local a, b, tx, c, d, ty = f32(m[1]), f32(m[2]), f32(m[3]), f32(m[4]), f32(m[5]), f32(m[6])
  local px, py = f32(1 / f32(2 / (W - 1))), f32(1 / f32(2 / (H - 1)))
  local nx, ny = f32(2 / (width - 1)), f32(2 / (height - 1))
  local ax, bx, t = f32(a * px), f32(b * py), f32(f32(f32(a * px) + f32(b * py)) + tx)
  local cx, dx, u = f32(c * px), f32(d * py), f32(f32(f32(c * px) + f32(d * py)) + ty)
  ax, bx, t = f32(nx * ax), f32(nx * bx), f32(f32(nx * t) - 1)
  cx, dx, u = f32(ny * cx), f32(ny * dx), f32(f32(ny * u) - 1)
  if math.abs(cx) > math.abs(ax) then return nil end -- a rotation by more than 45 degrees needs row pivoting
  local ra, l = f32(1 / ax), f32(cx / ax)
  dx, u = f32(dx - f32(l * bx)), f32(u - f32(l * t))
  local rd = f32(1 / dx)
  local i21, i22, i23 = f32(-l * rd), rd, f32(-u * rd)
  local i11 = f32(f32(1 - f32(bx * i21)) * ra)
  local i12 = f32(-f32(bx * i22) * ra)
  local i13 = f32(f32(-t - f32(bx * i23)) * ra)
  return { i11, i12, i13, i21, i22, i23 }
end

return M
