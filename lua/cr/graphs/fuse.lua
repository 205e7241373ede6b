--- Decides which nodes of a graph are fused: conv -> normalization -> activation -> sum -> activation.
--
-- A node with a single user may run as late as that user, so a fused group runs at the place of its last node. The
-- first node represents the group, and its field `fused` lists the rest:
--
--     {affine = node, act = ACT, residual = index among its inputs, sum = node, late = ACT, between = values}
--     ACT = {act = 'relu' | 'relu6' | 'sigmoid' | 'prelu', slope = value or number, node = node}
--
-- A convolution applies `affine`, `act` and `residual`, in this order; the caller applies `late` to its result.
-- Shapes are unknown here: a row that finds that a part does not fit runs that node as a separate step, on the values
-- listed in `between`.

local IN_CONV = { relu = true, relu6 = true, prelu = true }
local CONV_INPUTS = 3 -- x, weight, bias; inputs of fused nodes follow them

-- Returns the groups by their first nodes, and the set of nodes that belong to the group of another node.
return function(nodes, outputs)
  local users = {}
  for _, node in ipairs(nodes) do
    for _, v in ipairs(node.inputs) do
      if v then
        users[v] = users[v] or {}
        table.insert(users[v], node)
      end
    end
  end
  for _, v in ipairs(outputs) do users[v] = { 'output', 'output' } end

  -- Returns the only user of the single result of a node.
  local function next_of(node)
    for i = 2, #node.outputs do
      if node.outputs[i] and users[node.outputs[i]] then return nil end
    end
    local list = users[node.outputs[1]]
    return list and #list == 1 and not list[1].first and list[1] or nil
  end
  local function act_of(node, from, allowed)
    local act = node and node.row.act and node.inputs[1] == from and node.row.act(node)
    if not act or (allowed and not allowed[act.act]) then return nil end
    act.node = node
    return act
  end

  local result, at = {}, {}
  for i, node in ipairs(nodes) do at[node] = i end
  for _, node in ipairs(nodes) do
    local kind = node.row.kind
    if not node.first and (kind == 'conv' or kind == 'add') then
      local fused, inputs, last = { between = {} }, { unpack(node.inputs) }, node
      local function take(other)
        other.first = node
        table.insert(fused.between, last.outputs[1])
        last = other
      end
      if kind == 'conv' then
        for i = #inputs + 1, CONV_INPUTS do inputs[i] = false end
        local next_node = next_of(last)
        if next_node and next_node.row.kind == 'affine' and next_node.inputs[1] == last.outputs[1] and
          next_node.row.constant(next_node) then
          fused.affine = next_node
          take(next_node)
          next_node = next_of(last)
        end
        local act = act_of(next_node, last.outputs[1], IN_CONV)
        if act then
          fused.act = act
          take(next_node)
          next_node = next_of(last)
        end
        if next_node and next_node.row.kind == 'add' then
          local a, b = next_node.inputs[1], next_node.inputs[2]
          if a ~= b then
            inputs[#inputs + 1] = a == last.outputs[1] and b or a
            fused.residual, fused.sum = #inputs, next_node
            take(next_node)
          end
        end
      end
      local next_node = next_of(last)
      local late = act_of(next_node, last.outputs[1])
      if late then
        fused.late = late
        take(next_node)
      end
      if last ~= node then
        local group = {}
        for k, v in pairs(node) do group[k] = v end
        group.inputs, group.outputs, group.fused, group.first = inputs, last.outputs, fused, nil
        result[at[last]] = group
        node.first = node
      end
    end
  end
  local list = {}
  for i, node in ipairs(nodes) do
    local one = result[i] or (not node.first and node)
    if one then list[#list + 1] = one end
  end
  return list
end
