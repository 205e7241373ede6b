--- A job on several GPUs: which device generates which window, from what, and which one finds and pastes
--- faces.
--
-- One GPU finds faces and encodes the audio. If it fails, another one opens the video again and skips the
-- windows that were already found. It still looks at their frames, so that all later results are unchanged.
--
-- Invariants: the inputs of a window lie in host memory, so they survive the failure of a GPU. A window's
-- random generator starts at the window's own position in the sequence, and the next window's starts where
-- its draws end.

local cr = require 'cr'
local aheads = require 'models.latentsync.ahead'
local dealers = require 'models.cards.dealer'
local windows = require 'models.latentsync.windows'

local M = {}

--- The makers, which generate windows: the model that also finds faces, and a copy of it on each further GPU.
--- @param job Job
--- @param copy fun(device: string, number: integer): LatentSync
--- @param sampler fun(): Sampler creates another sampler like the job's
--- @return Maker[]
function M.makers(job, copy, sampler)
  local list = { { device = job.settings.devices[1], sampler = job.sampler, model = job.model, ahead = aheads.new() } }
  for i = 2, #job.settings.devices do
    local device = job.settings.devices[i]
    list[i] = { device = device, sampler = sampler(), ahead = aheads.new(), load = function() return copy(device, i) end }
  end
  return list
end

-- Prepares a clip that the source found.
local function prepare(job, clip)
  if not windows.has_face(clip) then return end
  clip.generator = cr.generator(clip.source.generator)
  job:skip(clip)
  if not clip.faces then return end
  local faces, hear = clip.faces, job.model:listen(clip)
  clip.faces, clip.hear = cr.keep(faces:to 'cpu', hear:to 'cpu')
  if not rawequal(faces, clip.faces) then faces:free() end
  if not rawequal(hear, clip.hear) then hear:free() end
end

-- Copies a tensor to a device. On the networks' stream the copy would wait for the steps that are queued there, and the
-- thread with it.
local function bring(t, device)
  if t.device == device then return t:clone() end
  cr.cuda.stream(cr.cuda.BESIDE)
  local ok, copy = pcall(function()
    local there = t:to(device)
    cr.cuda.hand_over(there, 0)
    return there
  end)
  cr.cuda.stream(0)
  if not ok then error(copy, 0) end
  return copy
end

--- A copy of a clip on a GPU. The original stays, so that it can be generated again elsewhere.
--- @param clip Clip
--- @param device string
--- @return Clip
function M.on_card(clip, device)
  return setmetatable({ faces = bring(clip.faces, device), generator = cr.generator(clip.generator) }, { __index = clip })
end

--- The clip's result has arrived: its inputs are no longer needed.
--- @param clip Clip
function M.collected(clip)
  if clip.source.colour then clip.source.colour:settle() end
  clip.faces:free()
  clip.hear:free()
end

--- The device that pastes faces: the first GPU, or another one after it has failed.
--- @param job Job
--- @return fun(err: any): string? device; nil if the error is not the GPU's fault, or no GPU is left
function M.home(job)
  local at = 1
  return function(err)
    local makers = job.makers
    if err == nil then return makers[at].device end
    if cr.cuda.survived(err, makers[at].device) then return nil end
    repeat at = at + 1 until not makers[at] or not makers[at].out
    return makers[at] and makers[at].device
  end
end

-- ---- the source ----------------------------------------------------------------------------------

local Source = {}

-- Any other field is looked up in the windows that are open.
function Source.__index(self, key)
  if Source[key] then return Source[key] end
  local value = self.now[key]
  if type(value) ~= 'function' then return value end
  return function(_, ...) return value(self.now, ...) end
end

local function pass_over(job, clip)
  if windows.has_face(clip) then job:skip(clip) end
  if clip.faces then clip.faces:free() end
  if not clip.last then return end
  for _, item in ipairs(clip.shown or clip.items) do item.frame:free() end
end

-- The next GPU that can find faces, with its model; nil if there is none.
local function next_finder(self)
  for _, maker in ipairs(self.job.makers) do
    if not self.lost[maker] and not maker.out and pcall(dealers.load, maker) then return maker end
  end
end

-- Continues on another GPU. Raises the error if it is not the GPU's fault, or if no GPU is left.
local function move(self, err)
  if cr.cuda.survived(err, self.maker.device) then error(err, 0) end
  self.lost[self.maker] = true
  local maker = next_finder(self)
  if not maker then error(err, 0) end
  self.job.progress:note(('%s can no longer find faces; %s takes over: %s'):format(self.maker.device, maker.device, tostring(err)), true)
  self.maker = maker
  local ok, problem = pcall(function()
    self.now = self.open(maker.model:hearing())
    self.opened[#self.opened + 1] = self.now
    for _ = 1, self.given do pass_over(self.job, self.now:next()) end
  end)
  if not ok then move(self, problem) end
end

--- The next clip, prepared.
--- @return Clip?
function Source:next()
  while true do
    local ok, clip = pcall(function()
      local found = self.now:next()
      if found then prepare(self.job, found) end
      return found
    end)
    if ok then
      self.given = self.given + 1
      return clip
    end
    move(self, clip)
  end
end

function Source:close()
  for _, source in ipairs(self.opened) do
    if source ~= self.now then pcall(source.close, source) end -- its GPU failed, perhaps with all its memory
  end
  self.now:close()
end

--- The windows of a job, from whichever GPU finds them.
--- @param job Job with makers
--- @param open fun(model: LatentSync): Windows
--- @return table
function M.source(job, open)
  local now = open(job.model)
  return setmetatable({ job = job, open = open, now = now, opened = { now }, maker = job.makers[1], given = 0, lost = {} }, Source)
end

return M
