#!/usr/bin/env python3
"""What ptxas says of every kernel, for sm_80 and sm_90: no spills, and registers that leave room for enough warps.

    ptxas_limits.py NVCC SOURCE_FOLDER FILE.cu...

Resident warps are counted from registers and static shared memory. Kernels that ask for dynamic shared memory at their
launch are listed with it in `dynamic_shared` below. Prints a table; exit code 1 when a limit does not hold.
"""
import concurrent.futures
import re
import subprocess
import sys

ARCHITECTURES = (80, 90)
REGISTERS, WARP_REGISTER_UNIT = 65536, 256  # of a multiprocessor; given out to a warp in these portions
SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024}
BLOCK_OVERHEAD = 1024  # shared memory that the system keeps for each block
MOST_WARPS, MOST_BLOCKS = 64, 32

# Bytes of dynamic shared memory by kernel and head dimension: two tiles of keys and values and one of the rows.
DYNAMIC_SHARED = {"attention_forward_kernel": 66048, "attention_dq_kernel": 66304, "attention_dkv_kernel": 66048}
# Resident warps asked for: the kernels on tensor cores, and everything that is bound by memory. The others (plain
# attention, InfoNCE) are bound by arithmetic; they are listed without a limit.
LEAST_WARPS = [
    (r"attention_(forward|dq|dkv)_kernel", 8),
    (r"attention_plain|infonce", 0),
    (r".", 32),
]


def compile_one(nvcc, folder, source, architecture):
    command = [nvcc, "-std=c++20", "-O3", f"-I{folder}", "-DNOTELLM_CUDA", "-DFMT_USE_CONSTEXPR=1", f"-arch=sm_{architecture}",
               "-Xptxas", "-v", "-cubin", "-o", "/dev/null", source]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{result.stderr}")
    ptx = subprocess.run([nvcc, *command[1:6], f"-arch=sm_{architecture}", "-ptx", "-o", "-", source], capture_output=True,
                         text=True, check=True).stdout
    # Names of anonymous namespaces differ between two runs of the compiler.
    threads = {readable(name): int(limit) for name, limit in
               re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", ptx, re.S)}
    kernels = []
    for part in result.stderr.split("Compiling entry function '")[1:]:
        name = part[:part.index("'")]
        spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        shared = re.search(r"(\d+) bytes smem", part)
        kernels.append({
            "readable": readable(name), "architecture": architecture, "registers": int(re.search(r"Used (\d+) registers", part)[1]),
            "shared": int(shared[1]) if shared else 0, "spilled": sum(int(x) for x in spills.groups()),
            "threads": threads.get(readable(name), 1024),
            "bounded": readable(name) in threads})
    return kernels


def readable(name):
    text = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip()
    text = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|notellm::gpu::|notellm::|^void ", "", text)
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return text[:i]
    return text


def resident_warps(kernel):
    warps = (kernel["threads"] + 31) // 32
    of_warp = -(-kernel["registers"] * 32 // WARP_REGISTER_UNIT) * WARP_REGISTER_UNIT
    blocks = min(MOST_BLOCKS, MOST_WARPS // warps, REGISTERS // (of_warp * warps))
    shared = kernel["shared"] + DYNAMIC_SHARED.get(kernel["readable"].split("<")[0], 0)
    if shared:
        blocks = min(blocks, SHARED_BYTES[kernel["architecture"]] // (shared + BLOCK_OVERHEAD))
    return blocks * warps


def main():
    nvcc, folder, *sources = sys.argv[1:]
    jobs = [(nvcc, folder, source, architecture) for source in sources for architecture in ARCHITECTURES]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        kernels = [kernel for part in pool.map(lambda job: compile_one(*job), jobs) for kernel in part]
    failed = 0
    print(f"{'sm':>2}  {'registers':>9}  {'threads':>7}  {'shared':>6}  {'warps':>5}  {'least':>5}  kernel")
    for kernel in kernels:
        least = next(limit for pattern, limit in LEAST_WARPS if re.search(pattern, kernel["readable"]))
        warps = resident_warps(kernel)
        wrong = []
        if kernel["spilled"]:
            wrong.append(f"{kernel['spilled']} bytes of stack or spills")
        if warps < least:
            wrong.append("too few resident warps")
        if not kernel["bounded"]:
            wrong.append("no __launch_bounds__")
        failed += bool(wrong)
        print(f"{kernel['architecture']}  {kernel['registers']:9}  {kernel['threads']:7}  {kernel['shared']:6}  {warps:5}  "
              f"{least or '':>5}  {kernel['readable']}{'  FAILED: ' + ', '.join(wrong) if wrong else ''}")
    print(f"{len(kernels)} kernels, {failed} beyond a limit")
    return 1 if failed or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
