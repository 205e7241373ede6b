--- Joins pieces of sound, as they arrive from a pipe or a socket, to one stream with one sample rate.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local tensor = require 'cr.tensor'
local library = require 'cr.media.library'

local lib, C = library.lib, base.C
local M = {}

local FORMATS = { s16 = { dtype = 'CR_I16', bytes = 2 }, f32 = { dtype = 'CR_F32', bytes = 4 } }

--- @class Pcm
--- @field rate integer
--- @field channels integer
--- @field handle ffi.cdata* the cr_pcm
local Pcm = {}
Pcm.__index = Pcm

--- Opens a stream that takes pieces of any rate and number of channels and resamples and mixes them as ffmpeg does.
--- @param options table of the result: {rate = samples per second, channels = 1}
--- @return Pcm
function M.pcm(options)
  local self = setmetatable({ rate = options.rate, channels = options.channels or 1, path = 'pcm' }, Pcm)
  self.handle = library.open('cr_pcm', lib.cr_pcm_close, self.rate, self.channels)
  return self
end

--- Adds a piece. An incomplete sample is an error.
--- @param samples string|Tensor interleaved, little-endian; or f32 [n], [n channels] on the CPU
--- @param from table of the piece: {rate = samples per second, channels = 1 (for a tensor, its own), format = 's16' or 'f32'}
function Pcm:push(samples, from)
  local handle = library.open_handle(self, 'push')
  if tensor.is_tensor(samples) then
    local channels = samples:dim() == 2 and samples:size(2) or 1
    if samples:numel() == 0 then return end
    local dense = samples:to('cpu'):to('f32'):contiguous()
    library.check(lib.cr_pcm_push(handle, dense:pointer(), dense:numel() / channels, C.CR_F32, from.rate, channels))
    return
  end
  local channels, format = from.channels or 1, FORMATS[from.format or 's16']
  if not format then base.fail(("push: the format '%s' is neither s16 nor f32"):format(tostring(from.format))) end
  local n = #samples / (format.bytes * channels)
  if n % 1 ~= 0 then
    base.fail(('push: %d bytes are not a whole number of samples of %d channel%s of %s'):format(#samples, channels,
      channels == 1 and '' or 's', from.format or 's16'))
  end
  if n > 0 then library.check(lib.cr_pcm_push(handle, ffi.cast('const char *', samples), n, C[format.dtype], from.rate, channels)) end
end

--- Marks the end of a sound and flushes the resampler, so that take() returns the rest. Another sound may follow.
function Pcm:finish()
  library.check(lib.cr_pcm_push(library.open_handle(self, 'finish'), nil, 0, C.CR_F32, self.rate, self.channels))
end

--- Returns all resampled samples that were not taken before.
--- @return Tensor f32 [n channels]; n may be 0
function Pcm:take()
  local t = tensor.new()
  base.check(lib.cr_pcm_take(library.open_handle(self, 'take'), t.c))
  return t
end

--- Closes the stream. Calling it twice is allowed.
function Pcm:close() library.close(self, lib.cr_pcm_close) end

local from = arguments.options { rate = arguments.positive, channels = arguments.maybe(arguments.positive),
  format = arguments.maybe(arguments.string) }
arguments.methods(Pcm, 'pcm', {
  push = { arguments.either('bytes or a tensor', arguments.string, tensor.kinds.alive), from }, finish = {}, take = {}, close = {},
})

return M
