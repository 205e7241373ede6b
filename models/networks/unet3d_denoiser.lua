-- Sampling with LatentSync's UNet3D: the network optimized for the steps of one window.
--
-- What does not depend on the step's latents is computed once per window. The unconditional half of guidance, whose
-- audio tokens are all zero, skips cross-attention, and is computed together with the conditional half as long as
-- both are equal. Each optimization can be switched off. On a GPU, each kind of step (with or without the
-- unconditional half, with deep features from a cache) is recorded as a CUDA graph when it first occurs, and then
-- replayed.

local arguments = require 'cr.arguments'
local cr = require 'cr'
local hooks = require 'models.networks.unet3d_hook'
local nets = require 'models.networks.unet3d_layers'
local nn = require 'cr.nn'

local node, conv, key_value, each_transformer = nets.node, nets.conv, nets.key_value, nets.each_transformer
local shape_text = nets.shape_text

local M = {}

--- @class UNetWindow
--- @field cond Tensor [1 F h w 9] mask, masked and reference latents
--- @field audio? Tensor [F T D] tokens
--- @field guidance? number (1.5); at most 1 means no unconditional half
--- @field timesteps integer[] timesteps of all steps
--- @field savings? table<string, boolean> false disables one: 'convolution', 'time', 'keys', 'deaf' (the unconditional half
---  without cross-attention)
--- @field record? boolean false: do not use CUDA graphs

--- @class UNetDenoiser
local denoiser = {}
denoiser.__index = denoiser

-- The tensors that a window's steps read but do not change; `tensors` lists all of them in a fixed order. On a GPU
-- they keep their addresses from window to window, because CUDA graphs read them there.
--- @class DenoiserState
--- @field tensors Tensor[]
--- @field cond Tensor
--- @field first? table weights of the first convolution for the latents' channels
--- @field share? Tensor the conditioning's contribution to its result
--- @field tokens? Tensor
--- @field cache? table<table, Tensor[]> keys and values per layer
--- @field steps table<string, function> by kind: (latents, time, deep?) -> prediction, deep?
--- @field step_of fun(halves: boolean, branch?: integer, shallow: boolean, hook?: table): function
--- @field memory table tensors that hooks keep between steps
--- @field hooked table<string, function> by kind: the hook's function that was recorded

local function hold(state, t)
  state.tensors[#state.tensors + 1] = t
  return t
end

-- Computes the state for a new window.
local function new_state(self, d, window, audio)
  local config, savings = self.config, window.savings or {}
  local state = { tensors = {}, memory = hooks.memory(), hooked = {} }
  local cond = window.cond
  local channels = cond:size(-1)
  state.cond = hold(state, cond:to(self.dtype):to(self.device):clone())
  if savings.convolution ~= false and not config.center_input_sample then
    -- A convolution is linear in its channels, so the conditioning's contribution can be computed once per window.
    local w = self.w.conv_in
    state.first = node(w, 'latents', {
      weight = hold(state, w.weight:narrow(4, 1, d.channels):contiguous()) })
    state.share = hold(state, cr.scope(function()
      return conv(node(w, 'conditioning', {
        weight = w.weight:narrow(4, d.channels + 1, channels):contiguous(), bias = w.bias,
      }), state.cond, { padding = 1 })
    end))
  end
  if audio then
    local tokens = audio:reshape(d.frames, audio:size(-2), audio:size(-1)):to(self.dtype):to(self.device)
    if d.two_halves and not d.guided then
      tokens = cr.cat({ cr.zeros(tokens.shape, { dtype = self.dtype, device = self.device }), tokens }, 1)
    end
    state.tokens = hold(state, tokens:clone())
    if savings.keys ~= false then
      state.cache = {}
      each_transformer(self.w, config, function(w, motion)
        local a = not motion and rawget(w.transformer_blocks[0], 'attn2')
        if not a then return end
        local k, v = key_value(a, tokens)
        state.cache[a] = { hold(state, k), hold(state, v) }
      end)
    end
  end
  cr.keep(unpack(state.tensors))
  return state
end

-- Creates a step: it predicts noise from latents and `time`. `time` holds the time embeddings of all resnets for this
-- step, concatenated as [1 sum of C], or, without that optimization, the shared time embedding. With both halves the
-- unconditional one comes first. With a branch it also returns DeepCache's features; a shallow step takes them as
-- input.
local function step_of(self, d, state, halves, branch, shallow, hook)
  local frames, offsets = d.frames, d.offsets
  local guided = halves and d.guided
  -- Without the optimization 'deaf', both halves have tokens, the unconditional half's first.
  local second_only = not halves and d.two_halves and not d.guided
  local function own_half(t)
    return second_only and t:narrow(1, frames + 1, frames) or t
  end
  return function(latents, time, deep)
    local pass = { frames = frames, guided = guided, hook = hook and hooks.new(hook, state.memory, guided and frames) }
    function pass.bias(w, batch)
      local own = offsets and time:narrow(2, offsets[w], w.time_emb_proj.weight:size(1)) or
          nn.linear(w.time_emb_proj, time)
      return own:expand(batch, -1)
    end
    if state.cache then
      function pass.keys(w) return own_half(state.cache[w][1]), own_half(state.cache[w][2]) end
    elseif state.tokens then
      function pass.keys(w) return key_value(w, own_half(state.tokens)) end
    end
    local y
    if state.first then
      y = conv(state.first, latents, { padding = 1, residual = state.share })
    else
      local full = cr.cat({ latents, state.cond }, 5)
      if self.config.center_input_sample then full = full * 2 - 1 end
      y = conv(self.w.conv_in, full, { padding = 1 })
    end
    if halves and not guided then y = cr.cat({ y, y }, 1) end
    return self:body(y, pass, branch, shallow and deep or nil)
  end
end

-- Identifies everything that is fixed in a recorded step.
local function state_key(d, window, audio)
  local parts = { table.concat(window.cond.shape, ' '), tostring(d.two_halves), audio and table.concat(audio.shape, ' ') or '-' }
  for _, name in ipairs { 'convolution', 'time', 'keys', 'deaf' } do
    parts[#parts + 1] = tostring(not window.savings or window.savings[name] ~= false)
  end
  return table.concat(parts, ';')
end

--- The network for the steps of one window. Its tensors do not belong to a scope: they live until :free() or garbage
--- collection. On a GPU, steps are recorded (cr.graph), and the next window of the same kind reuses the recordings of
--- a denoiser that was freed.
--- @param self UNet3D
--- @param window UNetWindow
--- @return UNetDenoiser
function M.new(self, window)
  local cond, config = window.cond, self.config
  local channels = cond:size(-1)
  self:check_video('the conditioning', cond, channels)
  if channels >= config.in_channels then
    error(('unet: %d conditioning channels leave none of the network\'s %d input channels for the latents')
      :format(channels, config.in_channels), 2)
  end
  local F = cond:size(2)
  local audio = config.add_audio_layer and window.audio or nil
  if audio then self:check_audio(audio, F) end
  local savings = window.savings or {}
  local d = setmetatable({ unet = self, timesteps = window.timesteps, frames = F,
    guidance = window.guidance or 1.5, channels = config.in_channels - channels }, denoiser)
  d.two_halves = audio ~= nil and d.guidance > 1
  d.guided = d.two_halves and savings.deaf ~= false

  cr.scope(function()
    if savings.time ~= false then
      local embedding, parts, width = self:embed(window.timesteps), {}, 0
      d.offsets = {}
      self:each_resnet(function(w)
        local own = nn.linear(w.time_emb_proj, embedding)
        parts[#parts + 1] = own
        d.offsets[w] = width + 1
        width = width + own:size(2)
      end)
      d.times = cr.keep(cr.cat(parts, 2))
    end
    d.key = state_key(d, window, audio)
    local idle = self.idle[d.key]
    local kept = idle and table.remove(idle)
    local state = new_state(self, d, window, audio)
    if kept then
      for i, t in ipairs(kept.tensors) do
        t:copy_(state.tensors[i])
        state.tensors[i]:free()
      end
      state = kept
    else
      local record = self.device ~= 'cpu' and window.record ~= false and not self.trace
      state.steps = {}
      function state.step_of(...)
        local step = step_of(self, d, state, ...)
        return record and cr.graph(step, { limit = 2 }) or step
      end
    end
    d.state = state
  end)
  return d
end

--- @class PredictHow
--- @field guided? boolean false: only the conditional half
--- @field branch? integer DeepCache branch, whose features are also returned, or taken from `deep`
--- @field deep? Tensor
--- @field hook? table wraps each layer (models/networks/unet3d_hook.lua)

--- The predictions at a step, before guidance.
--- @param x Tensor [1 F h w 4] latents
--- @param step integer index of the timestep, from 1
--- @param how? PredictHow
--- @return Tensor predictions [2 F h w 4], the unconditional one first; [1 F h w 4] without guidance
--- @return Tensor? deep DeepCache's features, if a branch was given without `deep`
function denoiser:predict(x, step, how)
  how = how or {}
  local network = self.unet
  network:check_video('the latents', x, self.channels)
  if x:size(1) ~= 1 or x:size(2) ~= self.frames then
    error(('unet: latents %s do not fit conditioning of %d frames'):format(shape_text(x),
      self.frames), 2)
  end
  if not self.timesteps[step] then error(('unet: there is no step %s'):format(tostring(step)), 2) end
  local branch, halves = how.branch, self.two_halves and how.guided ~= false
  if branch and (branch < 0 or branch >= network:branches() or branch ~= math.floor(branch)) then
    error(('unet: there is no branch %s to cache: this network has 0 to %d'):format(tostring(branch),
      network:branches() - 1), 2)
  end
  local hook = how.hook
  if hook ~= nil then hooks.check(hook) end
  local kind = ('%s %s %s %s'):format(tostring(halves), tostring(branch), tostring(how.deep ~= nil), hook and hook.name or '')
  local steps, hooked = self.state.steps, self.state.hooked
  if hook and hooked[kind] ~= hook.layer then -- another function under the same name: the recording contains the old one
    if hooked[kind] and type(steps[kind]) == 'table' then steps[kind]:free() end
    steps[kind], hooked[kind] = nil, hook.layer
  end
  steps[kind] = steps[kind] or self.state.step_of(halves, branch, how.deep ~= nil, hook)
  return cr.scope(function()
    local time = self.times and self.times:narrow(1, step, 1) or network:embed { self.timesteps[step] }
    local latents = x:to(network.dtype):contiguous()
    local y, deep
    if how.deep then
      y = steps[kind](latents, time, how.deep)
    else
      y, deep = steps[kind](latents, time)
    end
    return y:to(x.dtype), deep
  end)
end

--- The prediction at a step, with guidance.
--- @param x Tensor [1 F h w 4] latents
--- @param step integer index of the timestep, from 1
--- @return Tensor [1 F h w 4]
function denoiser:call(x, step)
  return cr.scope(function()
    local y = self:predict(x, step)
    if y:size(1) == 1 then return y end
    return cr.lincomb({ y:narrow(1, 1, 1), y:narrow(1, 2, 1) }, { 1 - self.guidance, self.guidance })
  end)
end

--- Frees the window's tensors; on a GPU the next window of the same kind reuses them.
function denoiser:free()
  local state = self.state
  if not state then return end
  self.state = nil
  if self.times then self.times:free() end
  if self.unet.device ~= 'cpu' then
    local idle = self.unet.idle
    idle[self.key] = idle[self.key] or {}
    table.insert(idle[self.key], state)
    return
  end
  for _, t in ipairs(state.tensors) do t:free() end
  hooks.free(state.memory)
end

local x, maybe = cr.kinds.alive, arguments.maybe
arguments.methods(denoiser, 'denoiser', {
  predict = { x, arguments.any, require 'cr.sampling.caches'.how }, call = { x, arguments.any }, free = {},
}, 'any')
return arguments.guard('unet: ', M, { new = { arguments.table, arguments.options {
  cond = x, audio = maybe(x), guidance = maybe(arguments.finite), timesteps = arguments.table,
  savings = maybe(arguments.table), record = maybe(arguments.boolean),
}, name = 'unet: denoiser' } })
