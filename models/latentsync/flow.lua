--- How windows become frames of a file: four tasks side by side, joined by bounded channels.
--
--     source -> make (the networks) -> stages -> paste -> stages -> sink
--
-- Faces are found, made anew and put back a window apart, and each frame is encoded as it is done. On a card the
-- tasks that find and paste have a stream of their own, so that the networks' never waits for them: window after
-- window is queued there, and nobody waits for the card but to put faces back.
--
-- Of a window in which several people are made the faces of all are kept until the last are there; then each frame is
-- finished with all of them.
--
-- Invariants: frames come out in the order of the source; at most a few windows are in flight, whatever the length
-- of the video; when one task fails or the job is cancelled the others are cancelled and have ended when run returns.

local cr = require 'cr'
local diagnosis = require 'models.latentsync.diagnosis'
local errors = require 'cr.errors'
local media = require 'cr.media'
local windows = require 'models.latentsync.windows'

local M = {}

local BESIDE = 1 -- the stream of a card for what goes on beside the networks

--- @class Stage what may stand between decoding and the file; models/latentsync/stages has those that settings choose
--- @field window (fun(self, clip: Clip, faces: Tensor?): Tensor?)? takes a window's faces, f32 [F S S 3] about in [-1, 1]
---   (nil where none are made), and returns those to paste, of any size: upscalers and face restorers stand here
--- @field frame (fun(self, item: FrameItem, frame: Tensor): Tensor)? takes a finished frame u8 [H W 3], returns another
--- @field deep boolean? of a video of more than 8 bits a value, frame() takes and returns f32 [H W 3] in [0, 1]; a stage
---   without it is given 8 bits
--- @field latents (fun(self, clip: Clip, latents: Tensor))? is shown the final latents [1 F h w 4]
--- @field close (fun(self, ok: boolean))? when the job has ended

--- Hands a value of a clip (or of a frame's item) through all stages that have a function of this name.
local function through(stages, name, value, owner)
  for _, stage in ipairs(stages) do
    if stage[name] then value = stage[name](stage, owner, value) or value end
  end
  return value
end

-- A finished frame through all stages, in the form that each takes.
local function frame_through(stages, frame, item)
  for _, stage in ipairs(stages) do
    if stage.frame then
      local form = stage.deep and frame.dtype ~= 'u8' and media.floats or media.eight_bits
      frame = stage:frame(item, form(frame)) or frame
    end
  end
  return frame
end

--- @class FlowOptions
--- @field model LatentSync
--- @field source table {next = fun(self): Clip?, rest = fun(self, n): FrameItem[]}; of the clips of a window the last says so
--- @field make fun(clip: Clip, before: table?): Tensor, function, function? the window's latents [1 F h w 4], a mark of the end
---   of its steps, and what is called when its faces are there: with true it says why they are not finite; before: the
---   window before, whose `decoded` waits for its end
--- @field skip (fun(clip: Clip))? called instead of make for a window that has faces and is not made
--- @field stages Stage[]
--- @field sink table a writer: pack, write
--- @field progress Progress
--- @field listen fun()? called first, while frames are found: the voice is heard then
--- @field ended fun()? called when all windows are found; what it raises ends everything
--- @field pause fun()? called after each frame is pasted, so that the steps get their turn
--- @field tail boolean? frames of the source that no window holds follow
--- @field frames_per_window integer

--- Runs a flow to its end.
--- @param o FlowOptions
function M.run(o)
  local model, source, progress, stages = o.model, o.source, o.progress, o.stages
  local pause = o.pause or function() end
  -- The next window is found while one is made, and no further one: its frames take memory.
  local found, made = cr.channel(0), cr.channel(1)
  local finished = cr.channel(o.frames_per_window)
  local function beside()
    if model.device ~= 'cpu' then cr.cuda.stream(BESIDE) end
  end

  local function find()
    beside()
    for clip in function() return source:next() end do found:put(clip) end
    if o.ended then o.ended() end
    found:close()
  end

  -- The new faces of a window and marks of the ends of its steps and of all of it.
  local function make(clip, before)
    return cr.scope(function()
      local latents, sampled, explain = o.make(clip, before)
      local window = { sampled = sampled, explain = explain }
      through(stages, 'latents', latents, clip)
      local faces = through(stages, 'window', model:decode(latents, clip), clip)
      window.faces, window.largest = cr.keep(faces, diagnosis.largest(faces))
      if model.device ~= 'cpu' then cr.cuda.hand_over(window.faces, BESIDE) end
      window.decoded = model:mark()
      return window
    end)
  end

  local function make_all()
    if o.listen then o.listen() end
    local before
    for clip in found do
      local window = {}
      if windows.is_made(clip) then
        window = make(clip, before)
        before = window
      else
        if o.skip and windows.is_skipped(clip) then o.skip(clip) end
        through(stages, 'window', nil, clip)
      end
      window.clip = clip
      made:put(window)
    end
    made:close()
  end

  -- A finished frame as the encoder takes it; the card's memory does not wait for the encoder.
  local function down(frame, item)
    finished:put { frame = cr.keep(o.sink:pack(frame_through(stages, frame, item))), seconds = item.seconds }
    item.frame:free()
    pause()
  end

  -- Pixels that are no numbers would be pasted as black.
  local function check(window)
    local fine = diagnosis.is_finite(window.largest)
    window.largest:free()
    local why = window.explain and window.explain(not fine)
    if not fine then errors.fail(why or 'the faces of a window are not finite') end
  end

  local function leave(items)
    for _, item in ipairs(items) do cr.scope(function() down(item.frame:whole(), item) end) end
  end

  local function finish()
    beside()
    local people = {} -- of the window whose clips come
    for window in made do
      if window.faces then
        progress:measure('denoise', 0, window.sampled)
        progress:measure('decode latents', 0, window.decoded)
        check(window)
        people[#people + 1] = window
      end
      if window.clip.last then
        local topmost = table.remove(people)
        if topmost then
          model:paste(topmost.faces, topmost.clip, down, people)
          topmost.faces:free()
          for _, other in ipairs(people) do other.faces:free() end
        else
          leave(window.clip.shown or window.clip.items)
        end
        people = {}
      end
    end
    while o.tail do
      local items = source:rest(o.frames_per_window)
      if #items == 0 then break end
      leave(items)
    end
    finished:close()
  end

  local function encode()
    for item in finished do
      progress:measure('encode', 1, function() o.sink:write({ item.frame }, item.seconds) end)
      progress:advance(1)
      item.frame:free()
    end
  end

  local ok, problem = pcall(cr.all, { find, make_all, finish, encode })
  for _, stage in ipairs(stages) do
    if stage.close then
      local closed, why = pcall(stage.close, stage, ok)
      if ok and not closed then ok, problem = false, why end
    end
  end
  if not ok then error(problem, 0) end
end

return M
