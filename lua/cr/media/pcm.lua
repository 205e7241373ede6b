--- Pieces of sound as they come, from a pipe or a socket, as one sound of one rate.

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

--- Makes one sound of pieces of any rate and number of channels, as ffmpeg resamples and mixes.
--- @param options table of what comes out: {rate = samples a second, channels = 1}
--- @return Pcm
function M.pcm(options)
  local self = setmetatable({ rate = options.rate, channels = options.channels or 1, path = 'pcm' }, Pcm)
  self.handle = library.open('cr_pcm', lib.cr_pcm_close, self.rate, self.channels)
  return self
end

--- Adds a piece. Bytes of a sample that is not whole are an error.
--- @param samples string|Tensor interleaved, little-endian; or f32 [n], [n channels] on the CPU
--- @param from table of the piece: {rate = samples a second, channels = 1 (a tensor's are its own), format = 's16' or 'f32'}
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
    base.fail(('push: %d bytes are no whole number of samples of %d channel%s of %s'):format(#samples, channels,
      channels == 1 and '' or 's', from.format or 's16'))
  end
  if n > 0 then library.check(lib.cr_pcm_push(handle, ffi.cast('const char *', samples), n, C[format.dtype], from.rate, channels)) end
end

--- The end of a sound: what the resampler still holds can be taken. Another sound may begin.
function Pcm:finish()
  library.check(lib.cr_pcm_push(library.open_handle(self, 'finish'), nil, 0, C.CR_F32, self.rate, self.channels))
end

--- All that is resampled and was not taken.
--- @return Tensor f32 [n channels]; n may be 0
function Pcm:take()
  local t = tensor.new()
  base.check(lib.cr_pcm_take(library.open_handle(self, 'take'), t.c))
  return t
end

--- Twice is fine.
function Pcm:close() library.close(self, lib.cr_pcm_close) end

local from = arguments.options { rate = arguments.positive, channels = arguments.maybe(arguments.positive),
  format = arguments.maybe(arguments.string) }
arguments.methods(Pcm, 'pcm', {
  push = { arguments.either('bytes or a tensor', arguments.string, tensor.kinds.alive), from }, finish = {}, take = {}, close = {},
})

return M
