--- Shot detection: cuts, dissolves and black, and what is not a cut.

local cr = require 'cr'
local cuts = require 'models.latentsync.cuts'
local film = require 'tests.support.film'
local smooth = require 'tests.support.formula_image'
local t = require 'tests.support.tap'

local H, W = 90, 160

local function view(picture, x, y) return picture:narrow(1, y + 1, H):narrow(2, x + 1, W):contiguous() end
local function shade(picture, gain, shift) return (picture:to 'f32' * gain + shift):clamp(0, 255):to 'u8' end
local function mix(a, b, share) return (a:to 'f32' * (1 - share) + b:to 'f32' * share + 0.5):clamp(0, 255):to 'u8' end

-- The frames at which shots begin, as 'A B', in a film of `count` frames.
local function begins(count, picture)
  local shots, list = cuts.new(), {}
  for i = 0, count - 1 do
    cr.scope(function()
      if shots:push(picture(i)) then list[#list + 1] = i end
    end)
  end
  return table.concat(list, ' ')
end

t.test('a cut is found at its frame, and back again', function()
  cr.scope(function()
    local a, b = smooth.image('frame0', H, W), smooth.image('frame2', H, W)
    t.equal(begins(6, function(i) return (i < 2 or i > 3) and a or b end), '2 4')
    t.equal(begins(4, function(i) return i < 2 and a or b:narrow(1, 1, 60):contiguous() end), '2', 'another size')
    t.equal(begins(3, function() return a end), '', 'none')
    t.equal(begins(3, function() return cr.zeros(1, 1, 3, { dtype = 'u8' }) end), '', 'one pixel')
  end)
end)

t.test('a moving camera, noise and passers-by are not cuts', function()
  cr.scope(function()
    local world = smooth.image('frame0', 180, 400)
    local a = view(world, 40, 40)
    for name, move in pairs {
      pan = function(i) return 3 * i, 0 end,
      whip = function(i) return i < 3 and 0 or math.min(240, (i - 3) * 40), 0 end,
      shake = function(i) return 40 + 20 * math.sin(2.9 * i), 40 + 10 * math.cos(2.1 * i) end,
    } do
      t.equal(begins(10, function(i)
        local x, y = move(i)
        return view(world, math.floor(x), math.floor(y))
      end), '', name)
    end
    local noisy = (a:to 'f32' + t.formula('input:noise', { H, W, 3 }) * 25):clamp(0, 255):to 'u8'
    t.equal(begins(4, function(i) return i % 2 == 0 and a or noisy end), '', 'noise')
    t.equal(begins(12, function(i)
      local frame = a:clone()
      frame:narrow(2, 10 * i + 1, 40):fill_(30)
      return frame
    end), '', 'somebody passes')
    local faint = shade(smooth.image('frame2', H, W), 0.15, 20)
    t.equal(begins(17, function(i)
      local frame = faint:clone()
      local left, right = math.max(0, 16 * i - 120), math.max(1, math.min(W, 16 * i))
      frame:narrow(2, left + 1, right - left):fill_(2)
      return frame
    end), '', 'somebody large and dark passes fast')
    t.equal(begins(4, function(i)
      local frame = a:clone()
      if i == 2 then frame:narrow(2, 1, W / 2):fill_(128) end
      return frame
    end), '', 'half of it is lost for a frame')
  end)
end)

t.test('flashes, fades and changing light are not cuts; the frame after black is compared with the one before', function()
  cr.scope(function()
    local a, b = smooth.image('frame0', H, W), smooth.image('frame2', H, W)
    t.equal(begins(8, function(i) return shade(a, 1, (i == 3 or i == 4) and 255 or i == 5 and 80 or 0) end), '', 'a flash')
    t.equal(begins(8, function(i) return shade(a, i % 2 == 0 and 1 or 1.6, i % 2 == 0 and 0 or 40) end), '', 'a lamp')
    t.equal(begins(20, function(i) return shade(a, math.max(0, 1 - 0.1 * i), 0) end), '', 'to black')
    t.equal(begins(20, function(i) return shade(a, math.abs(1 - 0.1 * i), 0) end), '', 'to black and back')
    local at = begins(20, function(i) return i < 10 and shade(a, 1 - 0.1 * i, 0) or shade(b, 0.1 * (i - 10), 0) end)
    t.ok(at == '11' or at == '12', 'black between two shots: ' .. at)
  end)
end)

t.test('a dissolve begins a shot at its end', function()
  cr.scope(function()
    local a, b = smooth.image('frame0', H, W), smooth.image('frame2', H, W)
    for _, length in ipairs { 6, 12, 25, 45 } do
      local at = tonumber(begins(length + 20, function(i) return mix(a, b, math.max(0, math.min(1, (i - 9) / length))) end))
      t.ok(at and math.abs(at - 9 - length) <= 2, ('%d frames: at %s, not %d'):format(length, tostring(at), 9 + length))
    end
  end)
end)

t.test('a wipe or a slide begins a shot at its end', function()
  cr.scope(function()
    local a, b = shade(smooth.image('frame0', H, W), 0.5, 0), shade(smooth.image('frame2', H, W), 0.5, 100)
    -- Columns of the new image up to `at`, in place or from its far end; then the old image's.
    local function across(new_goes, old_goes)
      return function(share)
        local at = math.floor(share * W)
        if at == 0 or at == W then return at == 0 and a or b end
        return cr.cat({ b:narrow(2, new_goes and W - at + 1 or 1, at), a:narrow(2, old_goes and 1 or at + 1, W - at) }, 2)
      end
    end
    for name, picture in pairs {
      wipe = across(false, false), both = across(true, true), over = across(true, false), away = across(false, true),
      down = function(share)
        local at = math.floor(share * H)
        if at == 0 or at == H then return at == 0 and a or b end
        return cr.cat({ b:narrow(1, 1, at), a:narrow(1, at + 1, H - at) }, 1)
      end,
    } do
      for _, length in ipairs { 10, 24 } do
        local at = tonumber(begins(length + 30, function(i) return picture(math.max(0, math.min(1, (i - 9) / length))) end))
        t.ok(at and at >= 9 + length / 2 and at <= 12 + length, ('%s of %d frames: at %s'):format(name, length, tostring(at)))
      end
    end
  end)
end)

t.test('people who cross and a fast pan are not cuts', function()
  t.keeps_storages() -- the film's people
  local anna, bert = film.person 'anna', film.person 'bert'
  for _, speed in ipairs { 8, 20 } do
    t.equal(begins(400 / speed, function(i)
      return film.frame(240, 640, { { anna, x = speed * i, y = 20 }, { bert, x = 430 - speed * i, y = 20 } }, i)
    end), '', 'two cross')
  end
  film.free()
  cr.scope(function()
    local world = smooth.image('wall', H, 2 * W)
    t.equal(begins(40, function(i) return view(world, math.floor(math.max(0, math.min(1, (i - 10) / 12)) * W), 0) end), '', 'a turn')
  end)
end)

t.done()
