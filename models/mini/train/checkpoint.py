"""Checkpoints of the training: small files, written whole or not at all.

RUN/NAME.pt holds weights and averaged weights in float16, the configuration, how far training has come
and Adam's averages in bfloat16; these of a large network lie in RUN/NAME.optimizer.pt, so that each file
stays below 16 MiB. Rounding once per stop is far below what a step changes.
"""

import os

import torch


LARGE = 2_000_000  # parameters from which a network's optimizer gets a file of its own


def path_of(run, name):
    return os.path.join(run, name + '.pt')


def write(value, path):
    torch.save(value, path + '.part')
    os.replace(path + '.part', path)


def as_type(state, dtype):
    return {k: v.detach().to('cpu', dtype) if v.is_floating_point() else v.detach().cpu()
            for k, v in state.items()}


def save(run, name, *, config, weights, ema, step, optimizer, **more):
    """weights, ema: state_dicts; more: small values that load() returns with the rest."""
    os.makedirs(run, exist_ok=True)
    state = optimizer.state_dict()
    adam = {'step': step, 'param_groups': state['param_groups'],
            'state': {k: as_type(v, torch.bfloat16) for k, v in state['state'].items()}}
    if sum(v.numel() for v in weights.values()) > LARGE:
        write(adam, os.path.join(run, name + '.optimizer.pt'))
    else:
        more['optimizer'] = adam
    write({'config': dict(config), 'weights': as_type(weights, torch.float16),
           'ema': as_type(ema, torch.float16), 'step': step, **more}, path_of(run, name))


def load(run, name, missing_ok=False):
    """What save() wrote, floating point numbers as float32; None if there is nothing and that is fine."""
    path = path_of(run, name) if run else ''
    if not os.path.exists(path):
        if missing_ok:
            return None
        raise SystemExit(f'{path} is missing: train {name} first')
    saved = torch.load(path, map_location='cpu', weights_only=True)
    for key in ('weights', 'ema'):
        saved[key] = {k: v.float() if v.is_floating_point() else v for k, v in saved[key].items()}
    return saved


def load_optimizer(run, name, optimizer, loaded):
    """Adam's averages for what load() returned, if they are there and belong to the same step."""
    saved, path = loaded.get('optimizer'), os.path.join(run, name + '.optimizer.pt')
    if saved is None and os.path.exists(path):
        saved = torch.load(path, map_location='cpu', weights_only=True)
    if saved is None or saved['step'] != loaded['step']:
        return False
    for state in saved['state'].values():
        # Adam's step count is float32; bfloat16 would have rounded it.
        state['step'] = torch.tensor(float(saved['step']))
    optimizer.load_state_dict({'state': saved['state'], 'param_groups': saved['param_groups']})
    return True


class Average:
    """Exponential moving average of a network's weights (EMA), warmed up."""

    def __init__(self, network, decay=0.999, state=None):
        self.decay, self.updates = decay, 0
        self.network = network
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}
        if state:
            for k, v in self.state.items():
                v.copy_(state[k])
            self.updates = 10 ** 6

    @torch.no_grad()
    def update(self):
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        pairs = [(a, b) for a, b in zip(self.state.values(), self.network.state_dict().values())]
        wide = [(a, b) for a, b in pairs if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in wide], [b.detach() for _, b in wide], 1 - decay)
        for a, b in pairs:
            if not a.is_floating_point():
                a.copy_(b)
