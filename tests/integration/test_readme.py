"""What README.md says works: its worker compiles and fits, its configuration is valid, its files exist."""
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BUILD = pathlib.Path(os.environ["PARAMD_BUILD"])
PARAMD = BUILD / "bin" / "paramd"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


class Readme(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_to_end(self, *command, **options):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def start_daemon(self, *settings):
        """A daemon of one rank on a port of the kernel's choice; returns its address."""
        config = self.folder / "paramd.yaml"
        config.write_text("listen: 127.0.0.1:0\n")
        daemon = subprocess.Popen([PARAMD, "--config", config, *settings], stdout=subprocess.PIPE,
                                  text=True)

        def stop():
            daemon.kill()
            daemon.wait()
            daemon.stdout.close()
        self.addCleanup(stop)
        return re.search(r"0 at (\S+)", daemon.stdout.readline()).group(1)

    def test_configurations_are_valid(self):
        self.assertGreater(len(blocks("yaml")), 0)
        for text in blocks("yaml"):
            path = self.folder / "paramd.yaml"
            path.write_text(text)
            self.assertIn("valid", self.run_to_end(PARAMD, "--check-config", path))

    def test_worker_compiles_against_the_installed_library_and_fits(self):
        prefix = self.folder / "installed"
        self.run_to_end("cmake", "--install", BUILD, "--prefix", prefix)
        (package,) = prefix.rglob("paramd.pc")
        source = self.folder / "fit.c"
        source.write_text(blocks("c")[0])
        flags = self.run_to_end("pkg-config", "--cflags", "--libs", "paramd",
                                env={**os.environ, "PKG_CONFIG_PATH": str(package.parent)}).split()
        program = self.folder / "fit"
        self.run_to_end(os.environ["CC"], "-std=c11", "-Wall", "-Wextra", "-Werror", "-o", program,
                        source, *flags)
        server = self.start_daemon("--set", "optimizer.name=adam", "--set", "optimizer.lr=0.05")
        output = self.run_to_end(program, env={**os.environ, "PARAMD_SERVER": server,
                                               "LD_LIBRARY_PATH": str(package.parents[1])})
        self.assertEqual(output, "y = 2.000 x + 1.000\n")

    def test_files_and_links_exist(self):
        names = re.findall(r"\]\(([^):#]+)\)", README)
        names += re.findall(r"^ *((?:deploy|tests)/[\w.-]+)", "".join(blocks("sh")), re.M)
        self.assertGreater(len(names), 8)
        for name in names:
            self.assertTrue((ROOT / name).exists(), name)

    def test_every_source_is_on_the_map(self):
        code_map = README[README.index("## Map of the code"):]
        sources = [path for pattern in ("common/*", "server/*", "server/*/*", "client/*")
                   for path in ROOT.glob(pattern + ".[ch]")]
        missing = sorted(path.relative_to(ROOT).as_posix() for path in sources
                         if not re.search(rf"\b{path.stem}\b", code_map))
        self.assertGreater(len(sources), 80)
        self.assertEqual(missing, [])


if __name__ == "__main__":
    sys.exit(unittest.main())
