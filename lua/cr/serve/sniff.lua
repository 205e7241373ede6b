--- Detects the type of a file by its first bytes, whatever its name is.

local M = {}

--- How many bytes at the beginning of a file are examined.
M.BYTES = 512

local function starts(text) return function(head) return head:sub(1, #text) == text end end
local function riff(form) return function(head) return head:sub(1, 4) == 'RIFF' and head:sub(9, 12) == form end end

local function brand(head)
  if head:sub(5, 8) ~= 'ftyp' then return nil end
  return head:sub(9, 12)
end
local STILL = { avif = true, avis = true, heic = true, heix = true, mif1 = true }

-- Each is {type, usual ending of the file, function that returns whether bytes are of it}, the more certain first.
local KINDS = {
  { 'video/quicktime', 'mov', function(h) return brand(h) == 'qt  ' end },
  { 'audio/mp4', 'm4a', function(h) return brand(h) == 'M4A ' end },
  { 'image/avif', 'avif', function(h) return STILL[brand(h) or ''] end },
  { 'video/mp4', 'mp4', function(h) return brand(h) ~= nil end },
  { 'video/quicktime', 'mov', function(h) return h:find '^....moov' or h:find '^....mdat' or h:find '^....wide' end },
  { 'video/webm', 'webm', function(h) return h:sub(1, 4) == '\26\69\223\163' and h:find('webm', 1, true) end },
  { 'video/x-matroska', 'mkv', starts '\26\69\223\163' },
  { 'video/x-msvideo', 'avi', riff 'AVI ' },
  { 'audio/wav', 'wav', riff 'WAVE' },
  { 'audio/wav', 'wav', function(h) return h:find '^RF64....WAVE' end },
  { 'image/webp', 'webp', riff 'WEBP' },
  { 'video/ogg', 'ogv', function(h) return h:sub(1, 4) == 'OggS' and h:find('theora', 1, true) end },
  { 'audio/ogg', 'ogg', starts 'OggS' },
  { 'audio/flac', 'flac', starts 'fLaC' },
  { 'audio/mpeg', 'mp3', starts 'ID3' },
  { 'audio/aac', 'aac', function(h) return h:find '^\255[\241\249\240\248]' end },
  { 'audio/mpeg', 'mp3', function(h) return h:find '^\255[\226-\255]' end },
  { 'audio/aiff', 'aiff', function(h) return h:find '^FORM....AIF[FC]' end },
  { 'audio/x-caf', 'caf', starts 'caff' },
  { 'video/mp2t', 'ts', function(h) return h:sub(1, 1) == 'G' and h:sub(189, 189) == 'G' end },
  { 'video/x-flv', 'flv', starts 'FLV\1' },
  { 'video/mpeg', 'mpg', function(h) return h:find '^%z%z\1[\186\179]' end },
  { 'video/x-ms-asf', 'asf', starts '\48\38\178\117\142\102\207\17' },
  { 'image/png', 'png', starts '\137PNG\r\n\26\n' },
  { 'image/jpeg', 'jpg', starts '\255\216\255' },
  { 'image/tiff', 'tif', starts 'II*\0' },
  { 'image/tiff', 'tif', starts 'MM\0*' },
}

--- @param head string the first BYTES bytes of the file, or the whole file if it is shorter
--- @return string? type such as 'video/mp4'; nil if it is neither video, sound nor picture
--- @return string? ending such as 'mp4'
function M.kind(head)
  for _, kind in ipairs(KINDS) do
    if kind[3](head) then return kind[1], kind[2] end
  end
end

--- Converts a type of video to that of a file with sound only.
--- @param kind string
--- @return string
function M.of_sound(kind) return (kind:gsub('^video/quicktime$', 'audio/mp4'):gsub('^video/', 'audio/')) end

return M
