#!/usr/bin/env python3
"""Hold the dependency rule: common <- server/core <- server/io, server/mpi <- daemon; client uses common only.

Two looks: what each source includes, and what each object of the pure libraries calls.
"""
import argparse
import fnmatch
import pathlib
import re
import subprocess
import sys

# The C library as far as it only computes: no files, sockets, clocks, threads, signals or randomness.
PURE_HEADERS = {
    "ctype.h", "errno.h", "float.h", "fnmatch.h", "inttypes.h", "limits.h", "math.h", "stdarg.h",
    "stdatomic.h", "stdbool.h", "stddef.h", "stdint.h", "stdio.h", "stdlib.h", "string.h",
    "strings.h",
}  # yapf: disable
LIBRARY_HEADERS = {"uv.h", "mpi.h", "yaml.h", "jansson.h", "isa-l/*", "protobuf-c/*", "check.h"}

PUBLIC = "client/include/paramd.h"

# First match counts: sources, the headers of ours they may include, and those of libraries.
# "libc" stands for every header that is not in LIBRARY_HEADERS.
LAYERS = [
    ("common/message*.c", ["common/*", "paramd.pb-c.h"], ["pure", "protobuf-c/*"]),
    ("common/checksum.c", ["common/*"], ["pure", "isa-l/crc64.h"]),
    ("common/kernel.h", ["common/tensor.h"], ["pure", "immintrin.h"]),
    ("common/heap.c", ["common/*"], ["pure", "sys/mman.h"]),
    ("common/frame.*", ["common/*"], ["pure", "sys/uio.h"]),  # struct iovec, which is but an address and a length
    ("common/*", ["common/*"], ["pure"]),
    ("server/core/*", ["common/*", "server/core/*"], ["pure", "yaml.h", "jansson.h"]),
    ("server/io/*", ["common/*", "server/core/*", "server/io/*"], ["libc", "uv.h"]),
    ("server/mpi/*", ["common/*", "server/core/*", "server/mpi/*"], ["libc", "mpi.h"]),
    ("server/*", ["common/*", "server/*"], ["libc", "uv.h"]),
    ("client/worker/*", [PUBLIC, "client/worker/*"], ["libc"]),
    ("client/paramctl*", [PUBLIC, "client/paramctl*"], ["libc", "jansson.h"]),
    ("client/*", ["common/*", "client/*"], ["libc"]),
]  # yapf: disable

# What a pure library may not call, and the objects that have reason to: kinds of calls, or single ones.
FORBIDDEN_CALLS = {
    "libuv": "uv_*",
    "MPI": "MPI_* PMPI_*",
    "sockets": "socket socketpair bind listen connect accept accept4 send sendto sendmsg recv "
               "recvfrom recvmsg getaddrinfo gethostbyname getsockopt setsockopt",
    "files": "open open64 openat creat fopen fopen64 fdopen freopen tmpfile* mkstemp* close fclose "
             "read pread* readv write pwrite* writev fread fwrite fgets fgetc getc getline fflush "
             "rename unlink mkdir rmdir opendir readdir stat fstat lstat ioctl fcntl fcntl64 mmap "
             "json_load_file json_loadf json_dump_file json_dumpf yaml_parser_set_input_file",
    "printing": "printf fprintf vprintf vfprintf dprintf puts fputs putchar putc fputc perror "
                "__printf_chk __fprintf_chk __vfprintf_chk stdout stderr stdin syslog",
    "clocks": "time clock clock_gettime gettimeofday timespec_get nanosleep clock_nanosleep sleep "
              "usleep localtime* gmtime* ctime* alarm timer_*",
    "randomness": "rand rand_r srand random srandom drand48 getrandom getentropy arc4random*",
    "processes": "fork vfork exec* system popen kill raise signal sigaction exit _exit abort getpid "
                 "getenv secure_getenv setenv gethostname uname",
    "threads": "pthread_* sem_* thrd_* mtx_* cnd_*",
    "the heap without pd_heap": "malloc calloc realloc reallocarray free strdup __strdup strndup "
                                "aligned_alloc posix_memalign memalign asprintf vasprintf",
}  # yapf: disable
EXCEPTIONS = {
    "assert.c.o": {"printing", "processes"},  # the last words of a failed assertion
    "heap.c.o": {"the heap without pd_heap", "mmap"},  # it is pd_heap
    "status.c.o": {"free"},  # of text that jansson made
}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def system_header_allowed(name, allowed):
    if matches(name, allowed):
        return True
    if "pure" in allowed:
        return name in PURE_HEADERS
    return "libc" in allowed and not matches(name, LIBRARY_HEADERS)


def include_faults(root):
    """One line per include that crosses a boundary."""
    faults = []
    sources = sorted(p for top in ("common", "server", "client")
                     for p in (root / top).rglob("*") if p.suffix in (".c", ".h"))
    for path in sources:
        name = path.relative_to(root).as_posix()
        own, system = next(layer[1:] for layer in LAYERS if fnmatch.fnmatchcase(name, layer[0]))
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = INCLUDE.match(line)
            if not found:
                continue
            header = found.group(2)
            of_ours = found.group(1) == '"'
            if not (matches(header, own) if of_ours else system_header_allowed(header, system)):
                faults.append(f"{name}:{number}: may not include {header}")
    return faults, len(sources)


def undefined_symbols(library):
    """Pairs (object, symbol) that the objects of a static library call but do not define."""
    listing = subprocess.run(["nm", "-A", "-u", library], check=True, capture_output=True, text=True)
    for line in listing.stdout.splitlines():
        place, kind, symbol = re.match(r"(.*): +(\w) (\S+)$", line).groups()
        if kind in "Uw":
            yield place.rsplit(":", 1)[-1], symbol.split("@")[0]


def call_faults(library):
    """One line per call of a pure library that reaches the outside world."""
    faults = []
    for member, symbol in undefined_symbols(library):
        for what, patterns in FORBIDDEN_CALLS.items():
            excepted = EXCEPTIONS.get(member, set()) & {what, symbol}
            if matches(symbol, patterns.split()) and not excepted:
                faults.append(f"{pathlib.Path(library).name}({member}): may not call {symbol}: {what}")
    return faults


def export_faults(library):
    """One line per symbol of the client's shared library that is not part of its interface."""
    listing = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True,
                             text=True)
    names = [line.split()[-1].split("@")[0] for line in listing.stdout.splitlines()]
    return [f"{pathlib.Path(library).name}: may not export {name}" for name in names
            if not name.startswith(("paramd_", "__asan", "__ubsan", "__sanitizer", "__odr_asan"))]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=pathlib.Path, help="root of the tree to scan")
    parser.add_argument("--pure", action="append", default=[], help="static library of pure code")
    parser.add_argument("--shared", action="append", default=[], help="shared library of the client")
    arguments = parser.parse_args()

    faults = []
    if arguments.source:
        faults, count = include_faults(arguments.source)
        print(f"{count} sources scanned")
    for library in arguments.pure:
        faults += call_faults(library)
    for library in arguments.shared:
        faults += export_faults(library)
    print("\n".join(faults) or "every dependency points the right way")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
