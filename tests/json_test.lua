--- JSON as cr.json writes it.

local json = require 'cr.json'
local t = require 'tests.support.tap'

t.test('keys are sorted and numbers exact', function()
  t.equal(json.encode { b = 1, a = { 1.5, 'x', true }, [3] = 0.1 }, '{"3":0.1,"a":[1.5,"x",true],"b":1}')
  t.equal(json.number(1 / 3), '0.3333333333333333')
  t.equal(json.number(2 ^ 53), '9007199254740992')
  t.equal(json.number(0 / 0), 'null')
  t.equal(json.number(-math.huge), 'null')
  t.equal(json.encode {}, '{}')
  t.equal(json.encode { a = json.list {}, b = json.list { 1 } }, '{"a":[],"b":[1]}')
end)

t.test('strings are escaped and read back', function()
  local text = 'a"b\\c\nd\te\1é\127'
  t.equal(json.decode(json.encode { text })[1], text)
end)

t.test('pretty', function() t.equal(json.encode({ a = { 1, 2 }, b = {} }, true), '{\n  "a": [\n    1,\n    2\n  ],\n  "b": {}\n}') end)

t.test('invalid JSON is reported', function()
  local value, problem = json.decode '{"a": '
  t.equal(value, nil)
  t.ok(problem:find 'Expected', problem)
end)

t.done()
