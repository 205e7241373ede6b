--- The idle clip: a video of a listening person, prepared once. It is shown between words, and mouths are generated
--- for its frames.
--
-- The place of the face, the aligned face, the conditioning latents and the region of the mouth are computed in
-- advance for each frame. Frames are shown forward and backward in turn, and the frame at which the direction turns
-- is shown twice, as when a job's sound is longer than its video (models/latentsync/frames.lua).
--
-- Invariant: after the preparation memory does not grow, however long the clip is shown.

local cr = require 'cr'
local align = require 'models.latentsync.align'
local casts = require 'models.latentsync.cast'
local choices = require 'models.latentsync.choice'
local errors = require 'cr.errors'
local frames = require 'models.latentsync.frames'
local windows = require 'models.latentsync.windows'

local M = {}

--- @class IdleFrame
--- @field frame VideoFrame in host memory
--- @field matrix number[]? nil if it has no face
--- @field region {weight: Tensor, area: table}? where the mouth is pasted; nil if it lies outside of the frame

--- @class Idle
--- @field list IdleFrame[]
--- @field height integer height of the frames
--- @field width integer
--- @field missing integer frames without a face
--- @field mask Tensor f32 [S S 1]
--- @field noise Tensor [1 1 h w 4] the initial noise of every window
--- @field generator any the sampler's random generator
local Idle = {}
Idle.__index = Idle

local function read(self, o)
  local model = self.model
  local chosen = { o.points and { text = o.face } or o.face == 'reference' and { text = o.face } or choices.new(o.face) }
  local crowd = windows.crowd(o, model, chosen, o.video, { o.video })
  local cast = casts.new { video = o.video, choices = chosen, size = model.size, smooth = o.smooth, hold = o.no_face == 'hold',
    cut = o.cut_windows }
  local source = frames.open {
    video = o.video, device = model.device, first = math.floor(o.start * 25 + 0.5), limit = math.floor(o.duration * 25 + 0.5),
    points = o.points, people = crowd, cast = cast, no_face = o.no_face, measure = o.measure, pause = o.pause,
  }
  local ok, problem = pcall(function()
    for item in function() return source:next(true) end do
      self.list[#self.list + 1] = { frame = item.frame, matrix = cast.parts[1].place:matrix(item.index) }
    end
    self.missing = source.missing
    local missed = source:missed()
    if missed then errors.fail(missed) end
  end)
  source:close()
  if not ok then error(problem, 0) end
end

-- The aligned face of a frame. A frame without a face uses the nearest frame's matrix, as in a job.
local function aligned(self, i)
  local list = self.list
  local matrix = list[i].matrix
  for distance = 1, #list do
    if matrix then break end
    local before, after = list[i - distance], list[i + distance]
    matrix = before and before.matrix or after and after.matrix
  end
  return cr.scope(function() return (align.warp(list[i].frame:rgb(), matrix, self.model.size)) end)
end

-- Computes faces and conditioning, window by window, with the same random draws as a job.
local function prepare(self, o)
  local model, F = self.model, o.frames_per_window
  local source = { mask = self.mask, generator = self.generator, measure = o.measure }
  local faces, conds = {}, {}
  for first = 1, #self.list, F do
    local n = math.min(F, #self.list - first + 1)
    local picture, cond = cr.scope(function()
      local parts = {}
      for i = 1, n do parts[i] = o.measure('align', 1, aligned, self, first + i - 1) end
      local clip = { source = source, n = n, faces = cr.stack(parts, 1):to(model.device) }
      local told = model:condition(clip)
      return clip.faces, told:view(n, model.latent, model.latent, told:size(5)):clone()
    end)
    faces[#faces + 1], conds[#conds + 1] = picture, cond
    if o.pause then o.pause() end
  end
  self.faces, self.conds = cr.cat(faces, 1), cr.cat(conds, 1)
  for _, item in ipairs(self.list) do
    if item.matrix and self.paste == 'region' then
      local weight, area = cr.scope(function()
        local weight, area = align.region_weight(item.frame:rgb(), item.matrix, self.mask)
        return weight, area
      end)
      item.region = weight and { weight = cr.keep(weight), area = area }
    end
    item.frame:leave_card()
  end
end

--- Reads and prepares a clip.
--- @param model LatentSync
--- @param o table the settings {video, start, duration, face, points, detector, smooth, no_face, cut_windows, mask, seed, rng,
---   paste, frames_per_window}; finder, measure, pause as for windows.open
--- @return Idle
function M.open(model, o)
  local self = setmetatable({ model = model, list = {}, paste = o.paste, mask = align.mask(model.size, o.mask) }, Idle)
  o.measure = o.measure or function(_, _, fn, ...) return fn(...) end
  local ok, problem = pcall(function()
    read(self, o)
    self.height, self.width = self.list[1].frame.height, self.list[1].frame.width
    for i, item in ipairs(self.list) do
      if item.frame.height ~= self.height or item.frame.width ~= self.width then
        errors.fail(('%s: the frame size changes at %.2f s: an idle clip must have one size'):format(o.video, o.start + (i - 1) / 25))
      end
    end
    self.generator = cr.generator(o.seed, o.rng)
    self.noise = model:draw(1, self.generator):unsqueeze(1)
    cr.keep(self.mask, self.noise)
    cr.scope(function()
      prepare(self, o)
      cr.keep(self.faces, self.conds)
    end)
  end)
  if not ok then
    self:free()
    error(problem, 0)
  end
  return self
end

--- Which frame of the clip is shown as the k-th frame.
--- @param k integer from 0
--- @return integer from 1
function Idle:index(k)
  local n = #self.list
  local within = k % (2 * n)
  return within < n and within + 1 or 2 * n - within
end

-- The rows of a tensor with the given numbers.
local function rows(t, numbers)
  local list = {}
  for i, number in ipairs(numbers) do list[i] = t:narrow(1, number, 1) end
  return cr.cat(list, 1)
end

--- Copies a tensor to a device; between two GPUs it goes through host memory.
--- @param x Tensor
--- @param device string
--- @return Tensor
function M.bring(x, device)
  if x.device == (device == 'cuda' and 'cuda:0' or device) then return x end
  return x:to('cpu'):to(device)
end

--- Assembles a window of frames, as the model's steps take it.
--- @param numbers integer[] frame numbers in the clip, from 1
--- @param device string target device
--- @return table clip {n, pixels f32 [n S S 3], source, items}
--- @return Tensor cond [1 n h w 9]
function Idle:window(numbers, device)
  local items, measure = {}, function(_, _, fn, ...) return fn(...) end
  for i, number in ipairs(numbers) do items[i] = self.list[number] end
  local clip = { n = #numbers, source = { mask = self.mask, measure = measure }, items = items,
    pixels = require 'models.latentsync.model'.pixels(M.bring(rows(self.faces, numbers), device)) }
  return clip, M.bring(rows(self.conds, numbers), device):unsqueeze(1)
end

--- A frame of the clip with a generated mouth.
--- @param number integer frame number in the clip, from 1
--- @param face Tensor? f32 [S S 3], about in [-1, 1], on the model's device; nil for the unchanged frame
--- @param share number? its weight in the blend (1)
--- @return Tensor u8 [H W 3]
function Idle:picture(number, face, share)
  local item = self.list[number]
  return cr.scope(function()
    local frame = item.frame:rgb()
    if not (face and share > 0 and item.matrix) then return frame end
    if self.paste == 'reference' then return align.paste_reference(frame, face, item.matrix, self.model.size, share) end
    if not item.region then return frame end
    return align.paste_region(frame, face, item.matrix, self.mask, share, item.region)
  end)
end

--- Frees the clip. May be called twice.
function Idle:free()
  for _, item in ipairs(self.list) do
    item.frame:free()
    if item.region then item.region.weight:free() end
  end
  for _, name in ipairs { 'mask', 'noise', 'faces', 'conds' } do
    if self[name] then self[name]:free() end
    self[name] = nil
  end
  self.list = {}
end

return M
