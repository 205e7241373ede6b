std = 'luajit'
max_line_length = 140
ignore = {
  '212/self', -- methods need not use self
}
