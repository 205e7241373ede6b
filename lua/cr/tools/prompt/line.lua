--- Reads lines from a terminal with GNU readline while the event loop runs, so that typing does not block timers,
--- decoding or a card.
--
-- Readline is used instead of libedit, because its callback interface never blocks inside a half-typed key (libedit
-- waits there for the rest of an escape sequence), and its lines may span several rows.
--
-- Invariants: while a line is edited, the registry's cr_hold is true, so Ctrl-C raises no error here. The key arrives
-- as a character, not as a signal (VINTR is off). The terminal is in raw mode only during `read`. Readline calls Lua
-- callbacks, and no error ever passes through it.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local terminal = require 'cr.tools.terminal'

ffi.cdef [[
typedef int (*cr_rl_command)(int count, int key);
typedef void (*cr_rl_handler)(char *line);
extern char *rl_line_buffer;
extern int rl_point, rl_end, rl_catch_signals, rl_catch_sigwinch, history_write_timestamps;
extern const char *rl_readline_name;
extern char history_comment_char;
void rl_callback_handler_install(const char *prompt, cr_rl_handler handler);
void rl_callback_read_char(void);
void rl_callback_handler_remove(void);
void rl_callback_sigcleanup(void);
int rl_bind_key(int key, cr_rl_command command);
int rl_variable_bind(const char *name, const char *value);
int rl_insert_text(const char *text);
int rl_delete_text(int first, int last);
void rl_replace_line(const char *text, int clear_undo);
int rl_forced_update_display(void);
int rl_on_new_line(void);
void rl_redisplay(void);
int rl_clear_visible_line(void);
int rl_ding(void);
void rl_free_line_state(void);
void rl_resize_terminal(void);
void rl_prep_terminal(int meta);
void rl_deprep_terminal(void);
void rl_display_match_list(char **matches, int count, int longest);
void using_history(void);
void stifle_history(int most);
void add_history(const char *line);
int read_history(const char *path);
int append_history(int lines, const char *path);
int history_truncate_file(const char *path, int lines);
void free(void *p);
int open(const char *path, int flags, ...);
char *ttyname(int fd);
int mkdir(const char *path, unsigned int mode);
]]

local M = {}

local HISTORY_LINES = 5000
local LIBRARY = 'libreadline.so.8'
local RDONLY, NOCTTY, CLOEXEC = 0, 0x100, 0x80000
local CTRL_C, TAB = 3, 9

-- ---- history ------------------------------------------------------------------------------------

--- Returns the path of the history file, whose folders are created, or nil.
function M.history_path()
  local state = os.getenv 'XDG_STATE_HOME'
  if not state or state == '' then
    local home = os.getenv 'HOME'
    if not home or home == '' then return nil end
    state = home .. '/.local/state'
  end
  local folder = ''
  for part in (state .. '/crescent'):gmatch '[^/]+' do
    folder = folder .. '/' .. part
    ffi.C.mkdir(folder, tonumber('700', 8))
  end
  return folder .. '/history'
end

local function history_of(edit)
  local path = M.history_path()
  -- Timestamps separate the entries, so that an entry may have several lines.
  edit.history_write_timestamps, edit.history_comment_char = 1, ('#'):byte()
  edit.using_history()
  edit.stifle_history(HISTORY_LINES)
  if path then
    local file = io.open(path, 'ab')
    if file then file:close() else path = nil end
  end
  if path then
    edit.history_truncate_file(path, HISTORY_LINES)
    edit.read_history(path)
  end
  local last
  return function(text)
    if text == last then return end
    last = text
    edit.add_history(text)
    -- Each entry is appended at once, so that a crash or a closed terminal loses nothing, and parallel sessions do
    -- not overwrite each other.
    if path then edit.append_history(1, path) end
  end
end

-- ---- without readline ---------------------------------------------------------------------------

local function plain_reader(host)
  print '(no line editing: apt-get install libreadline8)'
  local function read(prompt)
    io.write(prompt)
    io.flush()
    local line = io.read '*l'
    if host.interrupted() then
      io.write '\n' -- after the ^C that the terminal prints
      return nil, 'interrupted'
    end
    if not line then return nil, 'end' end
    return line
  end
  return { read = read, remember = function() end, aside = function(fn) return fn() end }
end

-- ---- with it ------------------------------------------------------------------------------------

local function common_prefix(list)
  local prefix = list[1].text
  for _, c in ipairs(list) do
    while c.text:sub(1, #prefix) ~= prefix do prefix = prefix:sub(1, -2) end
  end
  return prefix
end

local function list_below(edit, list)
  local names = ffi.new('char *[?]', #list + 2)
  local kept, longest = {}, 0
  for i, c in ipairs(list) do
    local text = c.shown or c.text
    kept[i] = ffi.new('char[?]', #text + 1, text)
    names[i] = kept[i]
    longest = math.max(longest, #text)
  end
  -- Slot 0 is for the common prefix, which is not displayed.
  kept[0] = ffi.new('char[1]')
  names[0] = kept[0]
  edit.rl_display_match_list(names, #list, longest)
  edit.rl_forced_update_display()
end

-- Completes the word before the cursor as far as it is unique, and lists the candidates.
local function complete_word(edit, complete)
  local whole = ffi.string(edit.rl_line_buffer, edit.rl_end)
  local before = whole:sub(1, edit.rl_point)
  if before:find '^%s*$' then return edit.rl_insert_text '  ' end
  local first, list = complete(before)
  if #list == 0 then return edit.rl_ding() end
  local word, known = before:sub(first), common_prefix(list)
  if #list == 1 then known = known .. (list[1].after or '') end
  if known ~= word then
    edit.rl_delete_text(first - 1, edit.rl_point)
    edit.rl_point = first - 1
    edit.rl_insert_text(known)
  elseif #list > 1 then
    list_below(edit, list)
  end
end

--- Makes a reader of lines: {read = fn(prompt) -> line, or nil and 'end' or 'interrupted'; remember = fn(text) adds
--- to the history; aside = fn(fn) calls fn, which may print while a line is edited}.
--- @param host table see lua/cr/tools/program.lua
--- @param options table {complete = fn(text before the cursor) -> first, candidates; waiting = fn(boolean), called
---   when it starts and stops waiting for keys; interrupt = fn(), called for Ctrl-C on an empty line}
function M.reader(host, options)
  local edit = base.system_library(LIBRARY)
  local name = ffi.C.ttyname(0)
  -- The terminal is opened again, because the loop makes this descriptor non-blocking, and standard output must stay blocking.
  local own = name ~= nil and ffi.C.open(name, RDONLY + NOCTTY + CLOEXEC) or -1
  if not edit or own < 0 then return plain_reader(host) end

  local loop = require 'cr.loop'
  if os.setlocale('', 'ctype') == 'C' then os.setlocale('C.UTF-8', 'ctype') end
  edit.rl_readline_name = 'crescent'
  edit.rl_catch_signals, edit.rl_catch_sigwinch = 0, 0
  edit.rl_variable_bind('page-completions', 'off')
  edit.rl_variable_bind('enable-bracketed-paste', 'on')

  local outcome -- the result of this read: {line} or {nil, why}
  local editing = false

  local function finished(line)
    local text = line ~= nil and ffi.string(line) or nil
    if line ~= nil then ffi.C.free(line) end
    outcome = text and { text } or { nil, 'end' }
    edit.rl_callback_handler_remove()
  end
  local function on_tab()
    local fine = pcall(complete_word, edit, options.complete)
    if not fine then edit.rl_ding() end
    return 0
  end
  local function on_interrupt()
    outcome = { nil, 'interrupted' }
    return 0
  end
  local handler = ffi.cast('cr_rl_handler', finished)
  local callbacks = { ffi.cast('cr_rl_command', on_tab), ffi.cast('cr_rl_command', on_interrupt) }

  for signal, action in pairs {
    sigwinch = function() edit.rl_resize_terminal() end,
    sigcont = function()
      edit.rl_deprep_terminal()
      edit.rl_prep_terminal(1)
      terminal.plain_interrupt()
      edit.rl_forced_update_display()
    end,
  } do
    local handle = loop.uv.new_signal()
    handle:start(signal, function() if editing then action() end end)
    handle:unref()
  end

  local function leave_line()
    local empty = edit.rl_end == 0
    edit.rl_callback_sigcleanup()
    edit.rl_free_line_state()
    edit.rl_point = edit.rl_end
    edit.rl_redisplay()
    io.write '^C'
    io.flush()
    edit.rl_replace_line('', 1)
    edit.rl_callback_handler_remove()
    io.write '\n'
    return empty
  end

  local function read(prompt)
    outcome, editing = nil, true
    options.waiting(true)
    io.flush()
    edit.rl_callback_handler_install(prompt, handler)
    edit.rl_bind_key(TAB, callbacks[1])
    edit.rl_bind_key(CTRL_C, callbacks[2])
    terminal.plain_interrupt()
    while not outcome do
      local fine, err = pcall(loop.readable, own)
      if fine then
        edit.rl_callback_read_char()
      elseif host.interrupted() then -- a signal from another process
        host.clear_interrupt()
        outcome = { nil, 'interrupted' }
      else
        edit.rl_callback_handler_remove()
        editing = false
        options.waiting(false)
        error(err, 0)
      end
    end
    local empty = outcome[2] == 'interrupted' and leave_line()
    editing = false
    options.waiting(false)
    if empty then options.interrupt() end
    return outcome[1], outcome[2]
  end
  jit.off(read) -- a C callback must not enter compiled code

  local inside = false -- an aside is active, whose own printing calls this function again
  local function aside(fn)
    if not editing or inside then return fn() end
    inside = true
    edit.rl_clear_visible_line()
    local fine, err = pcall(fn)
    io.flush()
    edit.rl_on_new_line()
    edit.rl_redisplay()
    inside = false
    if not fine then error(err, 0) end
  end

  return { read = read, remember = history_of(edit), aside = aside }
end

return M
