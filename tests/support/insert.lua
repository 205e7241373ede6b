--- Inserts a table into a Markdown file, between the lines <!-- begin NAME --> and <!-- end NAME -->. If the file
--- does not exist, it is created with the table alone.
--- @param path string
--- @param name string of the benchmark or the settings
--- @param text string whole lines
return function(path, name, text)
  local f = io.open(path, 'rb')
  if f then
    local old = f:read '*a'
    f:close()
    local _, from = old:find(('<!-- begin %s -->\n'):format(name), 1, true)
    local to = from and old:find(('<!-- end %s -->'):format(name), from, true)
    if not to then error(('%s has no lines <!-- begin %s --> and <!-- end %s -->'):format(path, name, name), 0) end
    text = old:sub(1, from) .. text .. old:sub(to)
  end
  require 'cr.files'.write(path, text, '--markdown')
end
