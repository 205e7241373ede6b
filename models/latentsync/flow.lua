--- Turns windows into frames of a file: concurrent tasks, joined by bounded channels.
--
--     source -> makers (the networks) -> stages -> paste -> stages -> sink
--
-- Finding faces, generating them and pasting them run one window apart, and each frame is encoded when it is done. On
-- a GPU, the tasks that find and paste use a stream of their own, so that the networks' stream never waits for them.
-- The thread never blocks on the GPU: a task that reads results lets others run meanwhile. Only a few steps are
-- queued at a time, because CUDA blocks a thread that queues more.
--
-- Each GPU that generates windows has a task of its own (models/cards/dealer.lua). With several GPUs, inputs and
-- results of windows pass through host memory, and whatever must happen in order (random draws, stages, pasting) is
-- done outside of these tasks.
--
-- If several people are generated in a window, all their faces are kept until the last one is there; then each frame
-- is finished with all of them.
--
-- Invariants: frames come out in the order of the source. At most a few windows are in flight, whatever the length of
-- the video. When one task fails or the job is cancelled, all other tasks are cancelled and have ended when run
-- returns.

local cr = require 'cr'
local dealers = require 'models.cards.dealer'
local diagnosis = require 'models.latentsync.diagnosis'
local errors = require 'cr.errors'
local media = require 'cr.media'
local windows = require 'models.latentsync.windows'

local M = {}

--- @class Stage a step between decoding and the file; models/latentsync/stages has those that settings select
--- @field window (fun(self, clip: Clip, faces: Tensor?): Tensor?)? takes a window's faces, f32 [F S S 3] about in [-1, 1]
---   (nil if none were generated), and returns those to paste, of any size: for upscalers and face restorers
--- @field frame (fun(self, item: FrameItem, frame: Tensor): Tensor)? takes a finished frame u8 [H W 3], returns another
--- @field deep boolean? for a video with more than 8 bits per sample, frame() takes and returns f32 [H W 3] in [0, 1]; a stage
---   without this flag gets 8 bits
--- @field pass (fun(self, clip: Clip, size: integer))? receives a clip before a part of a film, and the size of its faces if it were
---   generated
--- @field latents (fun(self, clip: Clip, latents: Tensor))? receives the final latents [1 F h w 4]
--- @field close (fun(self, ok: boolean))? is called when the job has ended

--- Passes a value of a clip (or of a frame's item) through all stages that have a function of this name.
local function through(stages, name, value, owner)
  for _, stage in ipairs(stages) do
    if stage[name] then value = stage[name](stage, owner, value) or value end
  end
  return value
end

-- Passes a finished frame through all stages, in the format that each takes.
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
--- @field makers Maker[] one per device that generates windows
--- @field source table {next = fun(self): Clip?, rest = fun(self, n): FrameItem[]}; the last clip of each window is marked; with
---   several makers, its faces are in host memory (models/latentsync/cards.lua)
--- @field make fun(maker: Maker, clip: Clip): table generates a clip: {latents [1 F h w 4], sampled = waits for the end of its
---   steps, explain = is called when its faces are there: with true it says why they are not finite}; it returns when only a few
---   of its steps are left on the GPU
--- @field collected (fun(clip: Clip))? with several makers: is called when a clip need not be generated again
--- @field skip (fun(clip: Clip))? with one maker: is called instead of make for a window with faces that is not generated
--- @field home (fun(err: any): string?)? with several makers: the device that pastes; after an error another one, or nil
--- @field stages Stage[]
--- @field sink table a writer: pack, write
--- @field progress Progress
--- @field listen fun()? is called by one maker before its first window, while frames are decoded: it encodes the audio
--- @field ended fun()? is called when all windows are found; an error that it raises ends the job
--- @field pause fun()? is called after each pasted frame, so that steps can be queued
--- @field tail boolean? appends the source's frames that belong to no window
--- @field frames_per_window integer

--- Runs a flow until it ends.
--- @param o FlowOptions
function M.run(o)
  local source, progress, stages, several = o.source, o.progress, o.stages, #o.makers > 1
  local pause, home = o.pause or function() end, several and o.home()
  local finished = cr.channel(o.frames_per_window)
  local shows_latents = false
  for _, stage in ipairs(stages) do shows_latents = shows_latents or stage.latents ~= nil end

  local function beside()
    if o.makers[1].device == 'cpu' then return end
    cr.cuda.stream(cr.cuda.BESIDE)
    cr.cuda.be_patient()
  end

  -- A maker's result for a clip: its faces, and events for the end of its steps and for the end of all its work.
  local function make(maker, clip)
    if not windows.is_made(clip) then
      if o.skip and windows.is_skipped(clip) then o.skip(clip) end
      return {}
    end
    return cr.scope(function()
      local model = maker.model
      local window = o.make(maker, clip)
      window.model = model
      -- With several makers, everything around the mouth is added later, in order, because colours are matched over
      -- time.
      local faces = (several and model.pictures or model.decode)(model, window.latents, clip)
      window.faces, window.largest = cr.keep(faces, diagnosis.largest(faces))
      window.latents = shows_latents and cr.keep(window.latents:clone()) or nil
      if model.device ~= 'cpu' then
        -- Whoever finishes a window waits for this window only, not for later work on its GPU.
        cr.cuda.hand_over(window.faces, cr.cuda.BESIDE)
        cr.cuda.hand_over(window.largest, cr.cuda.BESIDE)
        if window.latents then cr.cuda.hand_over(window.latents, cr.cuda.BESIDE) end
      end
      window.decoded = model:mark()
      return window
    end)
  end

  local dealer = dealers.new {
    makers = o.makers, make = make, what = 'windows',
    note = function(text) progress:note(text, true) end,
  }

  local function find()
    beside()
    for clip in function() return source:next() end do
      dealer:deal(clip, several and not windows.is_made(clip))
    end
    if o.ended then o.ended() end
    dealer:ended()
  end

  local tasks = { find }
  for i, maker in ipairs(o.makers) do
    tasks[#tasks + 1] = function()
      if i == 1 and o.listen then o.listen() end
      dealer:work(maker)
    end
  end

  -- Converts a finished frame for the encoder, so that no GPU memory waits for the encoder.
  local function down(frame, item)
    finished:put { frame = cr.keep(o.sink:pack(frame_through(stages, frame, item))), seconds = item.seconds }
    item.frame:free()
    pause()
  end

  -- Without this check NaN pixels would be pasted as black.
  local function check(window)
    local fine = diagnosis.is_finite(window.largest)
    window.largest:free()
    local why = window.explain and window.explain(not fine)
    if not fine then errors.fail(why or 'the faces of a window are not finite') end
  end

  -- The faces of a generated window, checked and passed through the stages; with several makers in host memory.
  local function receive(window, ticket)
    local clip, faces, model = ticket.piece, window.faces, window.model
    if not faces then
      through(stages, 'window', nil, clip)
      return nil
    end
    progress:measure('denoise', 0, window.sampled)
    progress:measure('decode latents', 0, window.decoded)
    check(window)
    local result = cr.scope(function()
      if window.latents then through(stages, 'latents', window.latents, clip) end
      local made = through(stages, 'window', several and model:compose(faces, clip) or faces, clip)
      return cr.keep(several and made:to 'cpu' or made)
    end)
    for _, name in ipairs { 'faces', 'latents' } do
      if window[name] and not rawequal(window[name], result) then window[name]:free() end
    end
    if o.collected then o.collected(clip) end
    return { faces = result, clip = clip, model = model }
  end

  -- fn(first, send) pastes the frames of a window from `first` on. If its GPU fails, another GPU does the rest.
  local function at_home(items, fn)
    local sent = 0
    local function send(frame, item)
      down(frame, item)
      sent = sent + 1
    end
    while true do
      for i = sent + 1, home and #items or 0 do items[i].frame:move(home) end
      local ok, err = pcall(fn, sent + 1, send)
      if ok then return end
      home = home and o.home(err)
      if not home then error(err, 0) end
    end
  end

  local function leave(items)
    at_home(items, function(first, send)
      for i = first, #items do cr.scope(function() send(items[i].frame:whole(), items[i]) end) end
    end)
  end

  local function finish()
    beside()
    local people = {} -- the people of the window whose clips are arriving
    for ticket in function() return dealer:next() end do
      people[#people + 1] = dealer:collect(ticket, receive)
      local clip = ticket.piece
      if clip.last then
        local items, topmost = clip.shown or clip.items, table.remove(people)
        if topmost then
          at_home(items, function(first, send) topmost.model:paste(topmost.faces, topmost.clip, send, people, first) end)
          topmost.faces:free()
          for _, other in ipairs(people) do other.faces:free() end
        else
          leave(items)
        end
        people = {}
      end
    end
    dealer:close()
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

  tasks[#tasks + 1], tasks[#tasks + 2] = finish, encode
  local ok, problem = pcall(cr.all, tasks)
  for _, stage in ipairs(stages) do
    if stage.close then
      local closed, why = pcall(stage.close, stage, ok)
      if ok and not closed then ok, problem = false, why end
    end
  end
  if not ok then error(problem, 0) end
end

return M
