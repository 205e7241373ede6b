--- Detects the terminal's size, colours, and protocol for pictures.
--
-- The environment is checked first. Only if it says nothing, the terminal is queried by an escape sequence (primary
-- device attributes), while nobody is typing.

local ffi = require 'ffi'

local M = {}

ffi.cdef [[
typedef struct { unsigned short rows, columns, width, height; } cr_window;
int ioctl(int fd, unsigned long request, ...);
int isatty(int fd);
typedef struct {
  unsigned int iflag, oflag, cflag, lflag;
  unsigned char line, cc[32];
  unsigned int ispeed, ospeed;
} cr_terminal_mode;
int tcgetattr(int fd, cr_terminal_mode *out);
int tcsetattr(int fd, int when, const cr_terminal_mode *mode);
long read(int fd, void *out, size_t bytes);
]]

local TIOCGWINSZ, FIONREAD = 0x5413, 0x541b
local ICANON, ECHO, VINTR, VTIME, VMIN, TCSANOW = 2, 8, 0, 5, 6, 0

--- Returns whether standard output is a terminal.
function M.is_terminal() return ffi.C.isatty(1) == 1 end

--- {columns, rows, cell_width, cell_height}: the last two in pixels, guessed if the terminal does not report them.
--- @return table
function M.size()
  local w = ffi.new 'cr_window'
  local known = ffi.C.ioctl(1, TIOCGWINSZ, w) == 0 and w.columns > 0
  local columns, rows = known and w.columns or 80, known and w.rows or 24
  local pixels = known and w.width > 0 and w.height > 0
  return {
    columns = columns, rows = rows, cell_width = pixels and w.width / columns or 9,
    cell_height = pixels and w.height / rows or 18,
  }
end

--- Returns the colours according to the environment: 'true' (24 bits), '256' or 'none'.
function M.colors()
  local term = os.getenv 'TERM' or ''
  local plain = os.getenv 'NO_COLOR'
  if plain and plain ~= '' or term == 'dumb' or term == '' then return 'none' end
  local said = os.getenv 'COLORTERM' or ''
  if said == 'truecolor' or said == '24bit' or term:find 'direct' or term:find 'kitty' then return 'true' end
  return '256'
end

--- Makes Ctrl-C a character instead of a signal, until the mode is set again.
function M.plain_interrupt()
  local mode = ffi.new 'cr_terminal_mode'
  if ffi.C.tcgetattr(0, mode) ~= 0 then return end
  mode.cc[VINTR] = 0
  ffi.C.tcsetattr(0, TCSANOW, mode)
end

-- Queries the device attributes for at most a fifth of a second. Returns nil if somebody is typing, whose keys would
-- be taken for the answer.
local function attributes()
  if ffi.C.isatty(0) ~= 1 or ffi.C.isatty(1) ~= 1 then return '' end
  local waiting = ffi.new 'int[1]'
  if ffi.C.ioctl(0, FIONREAD, waiting) == 0 and waiting[0] > 0 then return nil end
  local before, mode = ffi.new 'cr_terminal_mode', ffi.new 'cr_terminal_mode'
  if ffi.C.tcgetattr(0, before) ~= 0 then return '' end
  ffi.copy(mode, before, ffi.sizeof(mode))
  mode.lflag = bit.band(mode.lflag, bit.bnot(ICANON + ECHO))
  mode.cc[VMIN], mode.cc[VTIME] = 0, 2 -- tenths of a second
  ffi.C.tcsetattr(0, TCSANOW, mode)
  io.write '\27[c'
  io.flush()
  local answer, buffer = '', ffi.new 'char[64]'
  for _ = 1, 8 do
    local n = tonumber(ffi.C.read(0, buffer, 64))
    if n <= 0 then break end
    answer = answer .. ffi.string(buffer, n)
    if answer:find '%[%?[%d;]*c' then break end
  end
  ffi.C.tcsetattr(0, TCSANOW, before)
  return answer:match '%[%?([%d;]*)c' or ''
end

local found

-- Returns an environment variable; an empty one counts as unset.
local function environment(name)
  local value = os.getenv(name)
  return value ~= '' and value or nil
end

--- Returns the protocol for pictures: 'kitty', 'iterm2', 'sixel' or 'blocks' (half-block characters).
--- CR_PICTURES=NAME in the environment overrides the detection.
--- @return string
function M.pictures()
  local wanted = environment 'CR_PICTURES'
  if wanted == 'kitty' or wanted == 'iterm2' or wanted == 'sixel' or wanted == 'blocks' then return wanted end
  if found then return found end
  local term, program = environment 'TERM' or '', environment 'TERM_PROGRAM' or ''
  local inside = environment 'TMUX' or term:find '^screen' or term:find '^tmux'
  if not inside then
    if environment 'KITTY_WINDOW_ID' or term:find 'kitty' or program == 'ghostty' then found = 'kitty' end
    if program == 'iTerm.app' or program == 'WezTerm' or environment 'LC_TERMINAL' == 'iTerm2' then found = found or 'iterm2' end
    if term:find '^foot' or term:find '^mlterm' or term:find 'sixel' or term:find '^contour' then found = found or 'sixel' end
  end
  if not found then
    local list = attributes()
    if not list then return 'blocks' end
    found = (';' .. list .. ';'):find(';4;', 1, true) and 'sixel' or 'blocks'
  end
  return found
end

return M
