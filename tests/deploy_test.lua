-- scripts/deploy: manifests are valid, options and metrics exist, weights are fetched by hash.

local t = require 'tests.support.tap'
local cr = require 'cr'
local child = require 'tests.support.child'
local cjson = require 'cjson'
local clouds = require 'tests.support.cloud'
local digest = require 'cr.digest'
local files = require 'cr.files'
local lyaml = require 'lyaml'
local scratch = require 'tests.support.scratch'

local FOLDER = cr.root .. '/scripts/deploy'
local MANIFESTS = {
  'base/namespace.yaml', 'base/settings.yaml', 'base/serve.yaml', 'base/worker.yaml', 'base/network.yaml', 'sqs/scale.yaml',
  'redis/scale.yaml', 'monitoring/monitors.yaml', 'monitoring/alerts.yaml',
}
local python = os.getenv 'CR_PYTHON' or 'python3'
local function has(command) return os.execute(command .. ' >/dev/null 2>&1') == 0 end

-- All objects in all manifests.
local objects = {}
for _, name in ipairs(MANIFESTS) do
  for _, object in ipairs(lyaml.load(files.read(FOLDER .. '/' .. name), { all = true })) do objects[#objects + 1] = object end
end
local function of_kind(kind)
  local list = {}
  for _, object in ipairs(objects) do
    if object.kind == kind then list[#list + 1] = object end
  end
  return list
end

t.test('the image has the number of this version', function()
  local images = lyaml.load(files.read(FOLDER .. '/base/kustomization.yaml')).images
  t.equal(images[1].newTag, require 'cr'.version)
  for tag in files.read(FOLDER .. '/README.md'):gmatch '/crescent:(%S+)' do t.equal(tag, require 'cr'.version) end
end)

t.test('each kustomization lists existing files', function()
  for _, folder in ipairs { 'base', 'sqs', 'redis', 'monitoring' } do
    local list = lyaml.load(files.read(('%s/%s/kustomization.yaml'):format(FOLDER, folder))).resources
    for _, name in ipairs(list) do
      local path = ('%s/%s/%s'):format(FOLDER, folder, name)
      t.ok(files.read(path) or files.read(path .. '/kustomization.yaml'), path)
    end
  end
end)

t.test('pods run with a GPU, without privileges, and report their health', function()
  local list = of_kind 'Deployment'
  t.equal(#list, 2)
  for _, deployment in ipairs(list) do
    local pod = deployment.spec.template.spec
    t.equal(pod.securityContext.runAsNonRoot, true)
    for _, container in ipairs(pod.containers) do
      local rights = container.securityContext
      t.ok(rights.readOnlyRootFilesystem and rights.allowPrivilegeEscalation == false, container.name)
      t.equal(rights.capabilities.drop[1], 'ALL', container.name)
      t.equal(container.resources.limits['nvidia.com/gpu'], '1')
      t.ok(container.readinessProbe and container.livenessProbe and container.startupProbe, container.name)
    end
  end
  t.equal(#of_kind 'PodDisruptionBudget', 1)
  t.equal(#of_kind 'NetworkPolicy', 2)
  t.equal(#of_kind 'ScaledObject', 2)
end)

t.test("the commands' options exist", function()
  for _, deployment in ipairs(of_kind 'Deployment') do
    local pod = deployment.spec.template.spec
    local args = pod.containers[1].args
    local help = child.run { args[1], '--help' }.out
    local grace
    for i, word in ipairs(args) do
      if word:find '^%-%-' then t.ok(help:find(word .. ' ', 1, true), word) end
      if word == '--grace' then grace = tonumber(args[i + 1]) end
    end
    -- Kubernetes must wait longer than the worker takes.
    if grace then t.ok(pod.terminationGracePeriodSeconds > grace, 'grace') end
  end
end)

t.test('metrics in the dashboards and alerts exist', function()
  local told = {}
  for _, name in ipairs { 'init', 'consumer' } do
    local source = files.read(('%s/models/service/%s.lua'):format(cr.root, name))
    for metric in source:gmatch "'(crescent_[%w_%%]+)'" do told[#told + 1] = metric end
  end
  local function is_told(metric)
    for _, one in ipairs(told) do
      if metric:find('^' .. one:gsub('%%s', '%%w+') .. '$') then return true end
    end
  end
  local asked = files.read(FOLDER .. '/monitoring/alerts.yaml') .. files.read(FOLDER .. '/monitoring/dashboard.json')
  local n = 0
  for metric in asked:gmatch 'crescent_[%w_]+' do
    n = n + 1
    t.ok(is_told(metric), metric .. ' is told by nobody')
  end
  t.ok(n > 10)
  t.ok(#cjson.decode(files.read(FOLDER .. '/monitoring/dashboard.json')).panels > 5)
end)

t.test('Kubernetes would take the manifests (kubernetes-validate)', function()
  if not has(python .. ' -c "import kubernetes_validate"') then t.skip 'kubernetes-validate is absent: pip install kubernetes-validate' end
  local list = {}
  for _, name in ipairs(MANIFESTS) do
    if name:find '^base/' then list[#list + 1] = FOLDER .. '/' .. name end -- it does not know the kinds of KEDA and Prometheus
  end
  local said, status = scratch.command(('%s -m kubernetes_validate --strict %s'):format(python, table.concat(list, ' ')))
  t.equal(status, 0, said)
  t.ok(select(2, said:gsub('passed', '')) >= 10, said)
end)

t.test('both queues can be rendered (kubectl kustomize)', function()
  if not has 'kubectl kustomize --help' then t.skip 'kubectl is absent' end
  for kind, queue in pairs { sqs = 'sqs://', redis = 'redis://' } do
    local said, status = scratch.command(('kubectl kustomize %s/%s'):format(FOLDER, kind))
    t.equal(status, 0, said)
    local settings
    for _, object in ipairs(lyaml.load(said, { all = true })) do
      if object.kind == 'ConfigMap' then settings = object.data end
    end
    t.ok(settings.QUEUE:find('^' .. queue), settings.QUEUE)
  end
end)

t.test('weights are fetched by their hash, once', function()
  local lacks = clouds.lacks_cloud()
  if lacks then t.skip(lacks) end
  local cloud = clouds.cloud()
  cloud:enter()
  local list = ''
  cr.run(function()
    local s3 = require 'cr.remote.s3'
    clouds.make_bucket 'weights'
    for _, name in ipairs { 'unet.pt', 'vae/config.json' } do
      local path = scratch.write('part', name)
      list = list .. digest.of_file('SHA256', path) .. '  ' .. name .. '\n'
      s3.put(path, 's3://weights/c/' .. name)
    end
    s3.put(scratch.write('part', list), 's3://weights/c/SHA256SUMS')
  end)
  local to = scratch.path 'models'
  local function fetch(hash)
    return child.run({ FOLDER .. '/checkpoint.lua', 's3://weights/c', to, hash }, { env = cloud:environment() })
  end
  local r = fetch(digest.of_text('SHA256', list))
  t.equal(r.code, 0, r.err)
  t.equal(r.out, 'unet.pt\nvae/config.json\n')
  t.equal(files.read(to .. '/vae/config.json'), 'vae/config.json')
  files.write(to .. '/unet.pt', 'another')
  t.equal(fetch(digest.of_text('SHA256', list)).out, 'unet.pt\n')
  r = fetch(('0'):rep(64))
  t.ok(r.code == 1 and r.err:find 'SHA256SUMS has another SHA%-256 than 0000', r.err)
end)

child.clean()
t.done()
