--- Shows the progress of a long job on stderr, and measures its stages.
--
-- Stages in several tasks overlap, and the seconds of a stage, from its start to its end, include waiting for the
-- card, the decoder, the encoder or its turn. So their sum exceeds the total time. The working seconds of a stage
-- count only the time in which the program executed that stage, so their sum never does.
--
-- On a terminal one line is redrawn: bar, frames, frames per second, time left, and the stage, or the sampling step
-- of the current window. The time left is estimated from the remaining steps and frames and the time of each so far.
-- If stderr is not a terminal, at most one line per second is printed, and with `quiet` nothing. At most ten updates
-- per second are drawn, so a job may report as often as it likes.

local ffi = require 'ffi'
local now = require 'cr.clock'
local loop = require 'cr.loop'

--- @class Progress
--- @field total integer? frames
--- @field quiet boolean?
--- @field unit string
--- @field terminal boolean whether stderr is a terminal
--- @field started number the time of cr.clock
--- @field stages table<string, table>
--- @field order string[] names of the stages
local progress = {}
progress.__index = progress

ffi.cdef 'int isatty(int fd);'

--- @class ProgressOptions
--- @field total integer? frames in all
--- @field quiet boolean? draw nothing
--- @field unit string? 'frames'
--- @field words string[]? what step() counts: {'step', 'window'}

--- Makes a progress display and starts its clock.
--- @param options ProgressOptions
--- @return Progress
function progress.new(options)
  return setmetatable({
    total = options.total, quiet = options.quiet, unit = options.unit or 'frames', done = 0,
    started = now(), drawn = -math.huge, stages = {}, order = {}, depth = {}, clips = 1, words = options.words or { 'step', 'window' },
    terminal = ffi.C.isatty(2) == 1,
  }, progress)
end

local function stage_of(self, name)
  local s = self.stages[name]
  if not s then
    s = { seconds = 0, working = 0, frames = 0 }
    self.stages[name] = s
    self.order[#self.order + 1] = name
  end
  return s
end

local function finish(stage, frames, start, waited, ...)
  local seconds = now() - start
  stage.frames = stage.frames + frames
  stage.seconds = stage.seconds + seconds
  stage.working = stage.working + math.max(0, seconds - (loop.waited() - waited))
  return ...
end

--- Sets the total number of frames, or nil if it is unknown, and draws the line at once, so that even a job of one second
--- shows it.
--- @param total integer?
function progress:expect(total)
  self.total = total
  self.drawn = -math.huge
  self:draw(self.current)
end

--- Runs fn(...) and adds its time, and `frames` frames, to a stage.
--- @param name string
--- @param frames integer
--- @param fn function
function progress:measure(name, frames, fn, ...)
  local stage = stage_of(self, name)
  stage.began = now()
  self:draw(name)
  return finish(stage, frames, now(), loop.waited(), fn(...))
end

-- Stages that do not work frame by frame, or that are counted by steps.
local NOT_BY_FRAMES = { load = true, audio = true, denoise = true, enlarge = true }
-- Stages that count each frame once for each person.
local BY_CLIPS = { align = true, ['encode latents'] = true, ['decode latents'] = true, upscale = true }

-- Returns the working seconds of the stages that work frame by frame: those so far, and those expected for the rest.
-- Until the first face is decoded, decoding is assumed to take as long as encoding.
local function seconds_by_frames(self)
  local made, left, total = 0, 0, self.total or 0
  local function expect(stage, frames)
    return frames > 0 and stage.working / frames * math.max(0, math.min(total - frames, total - self.done)) or 0
  end
  local function frames_of(name) return self.stages[name].frames / (BY_CLIPS[name] and self.clips or 1) end
  local seen = self.done
  for _, name in ipairs(self.order) do seen = math.max(seen, frames_of(name)) end
  for _, name in ipairs(self.order) do
    if not NOT_BY_FRAMES[name] then
      local stage, frames = self.stages[name], frames_of(name)
      made = made + stage.working
      left = left + expect(stage, frames > 0 and frames or seen)
    end
  end
  local encoding = self.stages['encode latents']
  if encoding and encoding.frames > 0 and not self.stages['decode latents'] then
    left = left + encoding.working / encoding.frames * self.clips * total
  end
  return made, left
end

--- Reports that step k of `steps` in window w of `windows` was queued on the device. From then on the time left can
--- be estimated.
--- @param w integer
--- @param windows integer? nil if the number is unknown
--- @param k integer
--- @param steps integer of all the window's clips
--- @param clips integer? the clips of the window, one for each person (1)
function progress:step(w, windows, k, steps, clips)
  local t = now()
  self.steps_done = (self.steps_done or 0) + 1
  if not self.first_step_at then
    local stage = self.stages.denoise or self.stages.enlarge
    self.first_step_at, self.step_seconds, self.steps_timed = t, t - (stage and stage.began or t), 1
    self.made_before = seconds_by_frames(self)
  elseif k > 1 then
    self.step_seconds, self.steps_timed = self.step_seconds + t - self.last_step_at, self.steps_timed + 1
  end
  self.last_step_at = t
  self.steps_left = self.unit == 'frames' and windows and (windows - w + 1) * steps - k or nil
  self.clips = clips or 1
  self.sampling = ('%s %d of %d in %s %d%s'):format(self.words[1], k, steps, self.words[2], w, windows and ' of ' .. windows or '')
  self:draw(self.current)
  if k == steps and w == windows then self.sampling = nil end
end

-- Returns the estimated seconds until the end, or nil before the first step or if the total is unknown.
local function seconds_left(self, t)
  if self.unit == 'steps' and self.total and self.first_step_at then -- includes everything between the steps
    local n = self.steps_done - 1
    return n > 0 and (self.total - self.done) * (t - self.first_step_at) / n or nil
  end
  if not (self.steps_left and self.total) then return nil end
  if self.done >= self.total then return 0 end
  local a_step, made, left = self.step_seconds / self.steps_timed, seconds_by_frames(self)
  made, left = made - self.made_before + (self.steps_done - 1) * a_step, left + self.steps_left * a_step
  -- Tasks overlap on a card, so the elapsed time is scaled by the remaining work relative to the work done.
  return made > 0 and left * (t - self.first_step_at) / made or left
end

--- Returns the estimated seconds until the end, or nil if it is not known yet.
--- @return number?
function progress:left() return seconds_left(self, now()) end

--- Prints a line above the progress line. With `quiet` only warnings are printed.
--- @param text string
--- @param warning boolean?
function progress:note(text, warning)
  if self.quiet and not warning then return end
  self:clear()
  io.stderr:write(text, '\n')
end

--- Adds working seconds that were measured elsewhere to a stage.
function progress:add(name, frames, seconds)
  local stage = stage_of(self, name)
  stage.frames, stage.seconds, stage.working = stage.frames + frames, stage.seconds + seconds, stage.working + seconds
end

--- Reports `frames` more finished frames. The rate is measured from the second call on, so that loading does not
--- distort the estimate.
function progress:advance(frames)
  if self.done == 0 then self.rate_start, self.rate_done = now(), frames end
  self.done = self.done + frames
  self:draw(self.current)
end

local function clock(seconds)
  seconds = math.floor(seconds + 0.5)
  if seconds >= 3600 then
    return ('%d:%02d:%02d'):format(seconds / 3600, seconds / 60 % 60, seconds % 60)
  end
  return ('%d:%02d'):format(seconds / 60, seconds % 60)
end

local function line(self, stage)
  local parts = {}
  local t = now()
  local fraction = self.total and self.total > 0 and math.min(1, self.done / self.total)
  if fraction and self.terminal then
    local width = 24
    local full = math.floor(fraction * width)
    parts[#parts + 1] = '[' .. ('#'):rep(full) .. ('.'):rep(width - full) .. ']'
  end
  if self.total then
    parts[#parts + 1] = ('%d/%d %s'):format(self.done, self.total, self.unit)
  elseif self.done > 0 then
    parts[#parts + 1] = ('%d %s'):format(self.done, self.unit)
  end
  local rate
  if self.rate_start and self.done > self.rate_done and t > self.rate_start then
    rate = (self.done - self.rate_done) / (t - self.rate_start)
  elseif self.done > 0 then
    rate = self.done / (t - self.started)
  end
  if rate then parts[#parts + 1] = ('%.2f %s/s'):format(rate, self.unit) end
  if self.total and self.done < self.total then
    local left = seconds_left(self, t)
    if not left and rate and not self.first_step_at then left = (self.total - self.done) / rate end
    if left then parts[#parts + 1] = clock(left) .. ' left' end
  end
  parts[#parts + 1] = self.sampling or stage
  return table.concat(parts, '  ')
end

--- Redraws the line if the last update is long enough ago.
function progress:draw(stage)
  self.current = stage or self.current
  if self.quiet then return end
  local t = now()
  if t - self.drawn < (self.terminal and 0.1 or 1) then return end
  self.drawn = t
  local text = line(self, self.current or '')
  if self.terminal then
    io.stderr:write('\r', text, '\27[K')
    self.dirty = true
  else
    io.stderr:write(text, '\n')
  end
  io.stderr:flush()
end

--- Erases the line, so that something else can be printed.
function progress:clear()
  if self.dirty then
    io.stderr:write '\r\27[K'
    io.stderr:flush()
    self.dirty = false
  end
end

--- Returns the seconds since the start.
function progress:seconds() return now() - self.started end

--- Returns {name -> {seconds (including waiting), working_seconds, frames}} of all stages.
function progress:report()
  local all = {}
  for _, name in ipairs(self.order) do
    local s = self.stages[name]
    all[name] = { seconds = s.seconds, working_seconds = s.working, frames = s.frames }
  end
  return all
end

return progress
