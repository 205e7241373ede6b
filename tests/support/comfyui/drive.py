"""Starts ComfyUI in a folder of its own, lets it run prompts one after another, and prints what came of them as JSON:

    python drive.py COMFYUI FOLDER < {"nodes": {NAME: FOLDER}, "runs": [{"prompt": PROMPT, "interrupt": "denoise", "kill": true}]}

Of each run: {status: "success" | "error" | "interrupted" | "invalid", error, outputs (by node), texts (by node), previews, progress}.
`interrupt`: interrupts it when a node says that. `kill`: ComfyUI is killed after it, and the processes that outlive it
for long are counted: {left: N}.
"""

import asyncio
import json
import os
import signal
import struct
import subprocess
import sys
import time
import uuid

import aiohttp
import psutil

PATIENCE = float(os.environ.get("CR_PATIENCE", "1800"))


async def start(session, comfyui, folder, nodes):
    os.makedirs(os.path.join(folder, "custom_nodes"))
    for name, path in nodes.items():
        os.symlink(path, os.path.join(folder, "custom_nodes", name))
    # ComfyUI does not accept port 0, so ports are tried until one is free.
    for _ in range(20):
        port = 20000 + int.from_bytes(os.urandom(2), "big") % 40000
        with open(os.path.join(folder, "log"), "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "main.py", "--cpu", "--port", str(port), "--base-directory", folder, "--database-url",
                 "sqlite:///:memory:", "--preview-method", "auto"], cwd=comfyui, stdout=log, stderr=log,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        until = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < until:
            try:
                async with session.get(f"http://127.0.0.1:{port}/object_info") as answer:
                    return process, f"http://127.0.0.1:{port}", await answer.json()
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
        text = open(os.path.join(folder, "log"), errors="replace").read()
        if "address already in use" not in text.lower():
            sys.exit("ComfyUI did not start:\n" + text[-2000:])
    sys.exit("ComfyUI found no free port")


async def run(session, url, socket, client, job):
    result = {"texts": {}, "previews": 0, "progress": []}
    async with session.post(url + "/prompt", json={"prompt": job["prompt"], "client_id": client}) as answer:
        value = await answer.json()
        if answer.status != 200:
            return {**result, "status": "invalid", "error": json.dumps(value)}
    prompt = value["prompt_id"]
    async for message in socket:
        kind, data = None, {}
        if message.type == aiohttp.WSMsgType.TEXT:
            event = json.loads(message.data)
            kind, data = event["type"], event["data"]
        elif message.type == aiohttp.WSMsgType.BINARY:
            number = struct.unpack(">I", message.data[:4])[0]
            if number == 3:
                length = struct.unpack(">I", message.data[4:8])[0]
                node, text = message.data[8:8 + length].decode(), message.data[8 + length:].decode()
                kind = "text"
                result["texts"].setdefault(node, []).append(text)
            elif number in (1, 4):
                result["previews"] += 1
        else:
            sys.exit("ComfyUI closed its socket")
        if kind == "progress":
            result["progress"].append(data["value"] / data["max"])
        if kind == "text" and job.get("interrupt") and job["interrupt"] in text:
            job = {}
            await session.post(url + "/interrupt")
        if data.get("prompt_id") != prompt:
            continue
        if kind in ("execution_success", "execution_error", "execution_interrupted"):
            result["status"] = kind.removeprefix("execution_")
            result["error"] = (data.get("exception_message") or "").strip()
            break
    while True:  # the history is updated after the event
        async with session.get(f"{url}/history/{prompt}") as answer:
            history = await answer.json()
        if prompt in history:
            return {**result, "outputs": history[prompt]["outputs"]}
        await asyncio.sleep(0.05)


async def main():
    comfyui, folder = sys.argv[1:]
    given, results, client = json.load(sys.stdin), [], uuid.uuid4().hex
    async with aiohttp.ClientSession() as session:
        process, url, known = await start(session, comfyui, folder, given["nodes"])
        try:
            socket = await session.ws_connect(f"{url}/ws?clientId={client}", max_msg_size=0)
            for job in given["runs"]:
                result = await run(session, url, socket, client, job)
                if job.get("kill"):
                    below = psutil.Process(process.pid).children(recursive=True)
                    result["below"] = len(below)
                    process.send_signal(signal.SIGKILL)
                    result["left"] = len(psutil.wait_procs(below, timeout=60)[1])
                results.append(result)
        finally:
            process.terminate()
            process.wait()
    print(json.dumps({"runs": results, "nodes": {name: node for name, node in known.items() if name.startswith("Crescent")}}))


asyncio.run(main())
