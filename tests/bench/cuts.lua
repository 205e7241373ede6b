-- The accuracy of cut detection (models/latentsync/cuts.lua) on videos with known cuts: for each transition between
-- two clips, in how many videos it is found at its frame, and the number of false cuts.
--
--     build/crescent tests/bench/cuts.lua [--clips ../shared] [--only wipe] [--show]
--
-- A hard cut must be found at its frame, another transition between its middle and three frames after its end.
-- Without --clips the pictures are rendered; with it, clips of two real people are added.
--
-- Tiny: --only black

local cr = require 'cr'
local cuts = require 'models.latentsync.cuts'
local media = require 'cr.media'
local o = require 'tests.bench.options'.read('Accuracy of cut detection.', {
  { '--clips', 'folder', help = "folder with demo/demo1_video.mp4 and demo2_video.mp4, clips of two real people" },
  { '--only', default = '', help = 'transitions whose names contain this text' },
  { '--lengths', default = '8,16,25', help = 'lengths of wipes and slides in frames' },
  { '--noise', 'number', default = 0, min = 0, max = 50, help = "camera noise, in levels" },
  { '--show', 'flag', help = 'list the films with errors' },
})

local H, W, BEFORE, AFTER = 180, 320, 14, 22 -- in a video: frames before and after a transition
local film = require 'tests.support.film'
local formula = require 'tests.support.formula_image'

-- ---- clips: who(i) -> u8 [H W 3], kept ------------------------------------------------------------

-- The middle part of a video's frames, cropped to the aspect ratio and scaled to `scale` of it.
local function clip(path, scale)
  local reader, list = media.reader(path, { fps = 25 }), {}
  for i, frame in ipairs(reader:read(30)) do
    local width = math.floor(frame:size(2) * scale)
    local height = math.floor(width * H / W)
    local x, y = math.floor((frame:size(2) - width) / 2), math.floor((frame:size(1) - height) / 4)
    list[i] = cr.keep(cr.scope(function()
      return cr.nn.resize(frame:narrow(1, y + 1, height):narrow(2, x + 1, width), H, W, 'bilinear'):clone()
    end))
    frame:free()
  end
  reader:close()
  return function(i) return list[i % 58 < 30 and i % 58 + 1 or 59 - i % 58] end
end

local faces = cr.root .. '/tests/support/faces/'
local clips = { clip(cr.root .. '/models/mini/demo.mp4', 1), clip(faces .. '1.mp4', 1), clip(faces .. '3.mp4', 0.8) }
local wall = formula.image('wall', 2 * H, 4 * W)
if o.clips then
  for k = 1, 2 do clips[#clips + 1] = clip(('%s/demo/demo%d_video.mp4'):format(o.clips, k), 1) end
end
-- A person in front of a wall.
local anna = film.person 'anna'
clips[#clips + 1] = function(i)
  return film.frame(H, W, { { wall:narrow(1, 1, H):narrow(2, 1, W), x = 0, y = 0 }, { anna, x = 60, y = 10 } }, i)
end

-- ---- transitions: mix(a, b, share) of the pictures before and after, share from 0 to 1 -----------

local function part(to, picture, x, y) -- pasted with its upper left corner at (x, y)
  local left, top, right, bottom = math.max(0, x), math.max(0, y), math.min(W, x + W), math.min(H, y + H)
  if right <= left or bottom <= top then return end
  to:narrow(1, top + 1, bottom - top):narrow(2, left + 1, right - left)
    :copy_(picture:narrow(1, top - y + 1, bottom - top):narrow(2, left - x + 1, right - left))
end
local function floats(a, b, fn) return cr.scope(function() return fn(a:to 'f32', b:to 'f32'):clamp(0, 255):to 'u8' end) end
local function moved(ax, ay, bx, by) -- how far both pictures move, in widths and heights; b is in front unless it does not move
  return function(a, b, share)
    local out = cr.zeros({ H, W, 3 }, { dtype = 'u8' })
    local function put_a() part(out, a, math.floor(ax * share * W), math.floor(ay * share * H)) end
    local function put_b() part(out, b, math.floor(bx * (share - 1) * W), math.floor(by * (share - 1) * H)) end
    if bx == 0 and by == 0 then put_b() put_a() else put_a() put_b() end
    return out
  end
end
local function wiped(inside) -- a mask of the new picture's pixels
  return function(a, b, share)
    return cr.scope(function()
      local x, y = cr.arange(0, W - 1):view(1, W, 1) / W, cr.arange(0, H - 1):view(H, 1, 1) / H
      return cr.where(inside(x, y, share):expand(H, W, 3), b, a)
    end)
  end
end

local films = {}
-- Adds a transition from each clip to the next; far: to a later one.
local function add(kind, length, mix, far)
  for k = 1, #clips do
    local a, b = clips[k], clips[(k - 1 + (far or 1)) % #clips + 1]
    films[#films + 1] = { kind = kind, first = BEFORE, last = BEFORE + length, count = BEFORE + length + AFTER, frame = function(i)
      local share = math.max(0, math.min(1, (i - BEFORE + 1) / (length + 1)))
      if share == 0 then return a(i) elseif share == 1 then return b(i) end
      return mix(a(i), b(i), share)
    end }
  end
end
for far = 1, #clips - 1 do add('cut', 0, nil, far) end
for _, n in ipairs { 6, 12, 25 } do
  add('dissolve', n, function(a, b, share) return floats(a, b, function(x, y) return x * (1 - share) + y * share end) end)
end
add('through black', 16, function(a, b, share)
  return floats(a, b, function(x, y) return share < 0.5 and x * (1 - 2 * share) or y * (2 * share - 1) end)
end)
add('through white', 16, function(a, b, share)
  return floats(a, b, function(x, y) return share < 0.5 and x + 510 * share or y + 510 * (1 - share) end)
end)
for _, n in ipairs(require 'tests.bench.options'.numbers(o.lengths)) do
  add('wipe to the right', n, wiped(function(x, _, share) return x:lt(share) end))
  add('wipe to the left', n, wiped(function(x, _, share) return x:ge(1 - share) end))
  add('wipe down', n, wiped(function(_, y, share) return y:lt(share) end))
  add('wipe aslant', n, wiped(function(x, y, share) return (x + y):lt(2 * share) end))
  for _, sign in ipairs { -1, 1 } do
    add('slide of both, across', n, moved(sign, 0, sign, 0))
    add('slide of both, up or down', n, moved(0, sign, 0, sign))
    add('slide of the new one over the old', n, moved(0, 0, sign, 0))
    add('slide of the new one, up or down', n, moved(0, 0, 0, sign))
    add('slide of the old one away', n, moved(sign, 0, 0, 0))
  end
end

-- ---- sequences without a transition --------------------------------------------------------------------

local function none(kind, count, frame) films[#films + 1] = { kind = 'none: ' .. kind, count = count, frame = frame } end
local function view(x, y, i, layers)
  local list = { { wall, x = -x, y = -y } }
  for k, layer in ipairs(layers or {}) do list[k + 1] = layer end
  return film.frame(H, W, list, i)
end
local carl, bert = film.person 'carl', film.person 'bert'
for _, speed in ipairs { 3, 10, 25, 60, 120 } do
  none('pan', 40, function(i)
    local x = math.floor(math.max(0, math.min(W * 3, (i - 10) * speed)))
    return view(x, 60, i, { { carl, x = 200 - x, y = 0 }, { bert, x = 700 - x, y = -10 } })
  end)
end
none('pan by a width', 40, function(i)
  local x = math.floor(math.max(0, math.min(1, (i - 10) / 12)) * W)
  return view(x, 60, i, { { carl, x = 60 - x, y = 0 }, { bert, x = 60 + W - x, y = -10 } })
end)
for _, far in ipairs { 12, 25, 40 } do
  none('shake', 30, function(i)
    local x, y = math.floor(100 + far * math.sin(2.1 * i)), math.floor(60 + far / 2 * math.cos(2.9 * i))
    return view(x, y, i, { { carl, x = 160 - x, y = 50 - y } })
  end)
end
for _, by in ipairs { 1.01, 1.03, 1.06 } do
  none('zoom', 30, function(i)
    return cr.scope(function()
      local h = math.floor(2 * H / by ^ i)
      local w = math.floor(h * W / H)
      local y, x = math.floor((2 * H - h) / 2), math.floor((2 * W - w) / 2)
      return cr.nn.resize(wall:narrow(1, y + 1, h):narrow(2, x + 1, w), H, W, 'bilinear')
    end)
  end)
end
for k, who in ipairs(clips) do
  local function lit(kind, gain, shift)
    none(kind, 30, function(i)
      return cr.scope(function() return (who(i):to 'f32' * gain(i) + shift(i)):clamp(0, 255):to 'u8' end)
    end)
  end
  local function one() return 1 end
  local function zero() return 0 end
  none('as it is', 30, who)
  lit('a flash', one, function(i) return (i == 9 or i == 10) and 255 or i == 11 and 90 or 0 end)
  lit('strobes', function(i) return i % 3 == 0 and 1.7 or 1 end, zero)
  lit('to black and back', function(i) return math.abs(1 - i / 15) end, zero)
  lit('a light goes on', function(i) return i < 12 and 0.5 or 1 end, zero)
  lit('a light fades in', function(i) return math.min(1, 0.35 + i / 30) end, zero)
  for _, colour in ipairs { 20, 230 } do
    none('somebody passes', 36, function(i)
      local frame = cr.scope(function() return who(i):clone() end)
      local left, right = math.max(0, 12 * i - 140), math.max(1, math.min(W, 12 * i))
      if left < right then frame:narrow(2, left + 1, right - left):fill_(colour) end
      return frame
    end)
  end
  none('somebody comes close and stays', 40, function(i)
    local side = math.floor(120 + math.min(1, i / 15) * 120)
    return cr.scope(function()
      local large = cr.nn.resize(bert(i), side, side, 'bilinear')
      local frame = who(i):clone()
      part(frame, cr.nn.pad(large:narrow(1, 1, math.min(H, side)), { 0, 0, 0 }, { math.max(0, H - side), W - side, 0 }),
        math.max(30, W - 20 * i), 0)
      return frame
    end)
  end)
  if k == 1 then
    none('half of it lost', 20, function(i)
      local frame = cr.scope(function() return who(i):clone() end)
      if i == 9 then frame:narrow(2, 1, W / 2):fill_(128) end
      return frame
    end)
  end
end
for _, speed in ipairs { 5, 10, 20 } do
  none('two cross before a plain wall', math.floor(400 / speed), function(i)
    return film.frame(240, 640, { { anna, x = speed * i, y = 20 }, { bert, x = 430 - speed * i, y = 20 } }, i)
  end)
  none('two cross before a wall', math.floor(160 / speed), function(i)
    return view(0, 0, i, { { anna, x = speed * i - 40, y = 20 }, { bert, x = 180 - speed * i, y = 20 } })
  end)
end

-- ---- ------------------------------------------------------------------------------------------------------

local generator = cr.generator(1)
local function noisy(frame)
  if o.noise == 0 then return frame end
  return cr.scope(function() return (frame:to 'f32' + cr.randn(frame.shape, { generator = generator }) * o.noise):clamp(0, 255):to 'u8' end)
end

local kinds, order, spent, frames = {}, {}, 0, 0
for number, this in ipairs(films) do
  if this.kind:find(o.only, 1, true) then
    local shots, begun = cuts.new(), {}
    for i = 0, this.count - 1 do
      local frame = noisy(this.frame(i))
      local start = os.clock()
      if shots:push(frame) then begun[#begun + 1] = i end
      spent, frames = spent + os.clock() - start, frames + 1
      collectgarbage 'step'
    end
    local row = kinds[this.kind]
    if not row then
      row = { films = 0, found = 0, extra = 0 }
      kinds[this.kind] = row
      order[#order + 1] = this.kind
    end
    local found, extra = 0, 0
    for _, i in ipairs(begun) do
      local right = this.first and i >= math.floor((this.first + this.last) / 2) and i <= this.last + (this.last > this.first and 3 or 0)
      if right and found == 0 then found = 1 else extra = extra + 1 end
    end
    row.films, row.found, row.extra = row.films + 1, row.found + found, row.extra + extra
    if o.show and (extra > 0 or this.first and found == 0) then
      print(('  film %d, %s%s: %s'):format(number, this.kind, this.first and (' of frames %d to %d'):format(this.first, this.last) or '',
        table.concat(begun, ' ')))
    end
  end
end
print(('%-40s %6s %6s %12s'):format('transition', 'films', 'found', 'begun beside'))
for _, kind in ipairs(order) do
  local row = kinds[kind]
  print(('%-40s %6d %6s %12d'):format(kind, row.films, kind:find '^none' and '' or row.found, row.extra))
end
print(('%.2f ms of CPU time per frame'):format(spent * 1e3 / math.max(1, frames)))
