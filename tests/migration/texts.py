"""What is said is true: options that sentences and documents name exist, and all options are documented. Cases of refusals.py."""
import os
import re
import subprocess

from lib import suite
from lib.suite import expect

DOCUMENTS = ("README.md", "docs/migrate.8", "docs/completion.bash")
# Options of others that we speak of, and what tests alone are given.
FOREIGN = {"--build", "--check", "--full", "--list", "--only", "--table", "--quick", "--fork", "--monotonic", "--boottime", "--prefix",
           "--lazy-pages", "--format", "--fix", "--send-arg"}
# Accepted and named only in words below the options of --help, since they are gone before the rest is parsed; and the beginning of names that are put together.
HIDDEN = {"--config", "--no-default-config", "--no-"}
COMMON = {"--help", "--help-all", "--version"}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+[a-z]")


def help_of(binary, *verb):
    return subprocess.run([binary, *verb, "--help"], capture_output=True, text=True, check=True, timeout=20).stdout


def verbs(binary):
    text = help_of(binary)
    return re.findall(r"^  ([a-z-]+) ", text[text.index("Subcommands:"):], re.M)


def options_of(binary, verb):
    """Those that its --help shows."""
    names = re.findall(r"^  (?:-\w, ?)?(?:--[a-z-]+, ?)*--[a-z-]+", help_of(binary, verb), re.M)
    return {name for line in names for name in OPTION.findall(line)} - {"--help", "--help-all"}


def all_options(binary):
    return {option for verb in verbs(binary) for option in options_of(binary, verb)} | {"--help", "--help-all", "--version"}


def sources():
    for top in ("core", "migrate", "pageserver", "proto", "lazypages"):
        for folder, _, names in os.walk(os.path.join(suite.ROOT, top)):
            for name in names:
                if name.endswith((".cpp", ".h")):
                    yield os.path.join(folder, name)


def options_in_sentences(context, folder):
    """Every option that a string of the program names."""
    known = all_options(context.binary)
    wrong = []
    for path in sources():
        with open(path) as f:
            for number, line in enumerate(f, 1):
                for text in re.findall(r'"((?:[^"\\]|\\.)*)"', line.split(" // ")[0]):
                    for option in OPTION.findall(text):
                        # Every switch of CRIU's can be turned off by --no-NAME.
                        plain = "--" + option[5:] if option.startswith("--no-") and "--" + option[5:] in known else option
                        if plain not in known | FOREIGN | HIDDEN:
                            wrong.append(f"{os.path.relpath(path, suite.ROOT)}:{number}: {option}")
    expect(not wrong, "there are no such options:\n  " + "\n  ".join(wrong))



def options_in_documents(context, folder):
    """Documents name no option that there is not, and the manual and the completion name all of them."""
    known = all_options(context.binary)
    for name in DOCUMENTS:
        with open(os.path.join(suite.ROOT, name)) as f:
            text = f.read().replace("\\-", "-")
        text = re.sub(r"\\f.", " ", text)
        named = set(OPTION.findall(text))
        unknown = named - known - FOREIGN - HIDDEN
        expect(not unknown, f"{name} names options that there are not: {sorted(unknown)}")
        if name != "README.md":
            expect(known - named <= COMMON, f"{name} does not name {sorted(known - named - COMMON)}")


def arguments_in_manual(context, folder):
    """What is no option has the same name in --help and in the manual."""
    with open(os.path.join(suite.ROOT, "docs/migrate.8")) as f:
        synopsis = re.sub(r"\\f.", "", f.read().replace("\\-", "-").split(".SH DESCRIPTION")[0])
    words = lambda text: re.findall(r"[\w:]+", text)
    for verb in verbs(context.binary):
        line = re.search(rf"^migrate {verb} (.*)", synopsis, re.M)
        expect(line, f"the manual does not have {verb}")
        manual = re.sub(r"\[[^]]*-[^]]*\]|\[options\]|-{1,2}[\w-]+ \w+", "", line[1])
        usage = re.search(rf"^Usage: migrate {verb} \[OPTIONS\](.*)", help_of(context.binary, verb), re.M)[1]
        expect(words(usage) == words(manual), f"`{verb} --help` names{usage}, the manual {manual}")


def completion_by_verb(context, folder):
    """The completion offers each verb all of its options."""
    script = os.path.join(suite.ROOT, "docs", "completion.bash")
    for verb in verbs(context.binary):
        command = f'source {script}; COMP_WORDS=(migrate {verb} --); COMP_CWORD=2; _migrate; printf "%s\\n" "${{COMPREPLY[@]}}"'
        offered = set(subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.split())
        shown = options_of(context.binary, verb)
        expect(shown <= offered, f"{verb}: not offered: {sorted(shown - offered)}")


def values_as_typed(context, folder):
    """--help shows values as people type them."""
    for verb in verbs(context.binary):
        text = help_of(context.binary, verb)
        for noise in ("->", "{", "ENUM", "INT", "TEXT", "FLOAT", " in ["):
            expect(noise not in text, f"`{verb} --help` shows {noise!r}:\n{text}")
    text = help_of(context.binary, "send")
    for words in ("--mode precopy|stop-copy|postcopy|hybrid|auto", "--on-no-convergence stop|throttle|cancel|postcopy", "--max-downtime MS", "default 50"):
        expect(words in text, f"`send --help` does not show {words!r}")


def choices_are_words(context, folder):
    """The numbers behind the words are nobody's business."""
    for option, good in (("--mode", "stop-copy"), ("--on-no-convergence", "cancel")):
        for value, code in (("0", 2), ("1", 2), ("nonsense", 2)):
            p = subprocess.run([context.binary, "send", "127.0.0.1:1", f"pid:{os.getpid()}", option, value], capture_output=True, text=True,
                               timeout=20)
            expect(p.returncode == code and option in p.stderr and good in p.stderr,
                   f"send {option} {value} exited {p.returncode}: {p.stdout}{p.stderr}")


def usage_errors(context, folder):
    """A command line that does not parse: one sentence, which begins with the command, and exit code 2."""
    send = ["send", "127.0.0.1:1", f"pid:{os.getpid()}"]
    for arguments, words in ((["send", "--frob"], "migrate send: there is no option --frob;"),
                             (["send"], "migrate send: it needs HOST:PORT;"),
                             (["send", "127.0.0.1:1"], "migrate send: it needs pid:N;"),
                             ([*send, "more"], 'migrate send: "more" is one argument too many;'),
                             ([*send, "--max-downtime"], "migrate send: --max-downtime needs a value: MS;"),
                             ([*send, "--streams", "99"], 'migrate send: --streams: "99" is not from 1 to 64;'),
                             ([*send, "--max-total-time", "-3"], 'migrate send: --max-total-time: "-3" is not from 0 to 1000000000;'),
                             ([*send, "--mode", "foo"], 'migrate send: --mode: "foo" is none of precopy,stop-copy,'),
                             ([*send, "--compress", "foo"], 'migrate send: --compress: "foo" is no compression; write auto'),
                             (["receive", "--allow-uid", "x"], 'migrate receive: --allow-uid: "x" is no number;'),
                             (["dump", "-t", "x"], 'migrate dump: --tree: "x" is not from 1 to 4194304;'),
                             (["keys"], "migrate keys: it needs NAME;"),
                             (["frob"], 'migrate: there is no verb "frob";'), (["--frob"], "migrate: there is no option --frob;"),
                             ([], "migrate: it needs a verb;")):
        p = subprocess.run([context.binary, *arguments], capture_output=True, text=True, timeout=20)
        expect(p.returncode == 2 and p.stderr.startswith(words) and p.stderr.count("\n") == 1 and "--help`" in p.stderr and not p.stdout,
               f"{arguments} exited {p.returncode}: {p.stdout}{p.stderr}")


def no_untrue_words(context, folder):
    """What was said once and is not so."""
    for path, words in (("README.md", r"5\.13|containers|seccomp filters or a userfaultfd, are moved"), ("CMakeLists.txt", "containers"),
                        ("core/files/README.md", "Not yet: file locks")):
        with open(os.path.join(suite.ROOT, path)) as f:
            found = re.search(words, f.read())
        expect(not found, f"{path} says {found and found[0]!r}")
    expect("containers" not in help_of(context.binary), "--help speaks of containers")


def sentence_fits_verb(binary, sentence, *allowed):
    """The options that a refusal advises are those of the command (or of `allowed` verbs: the other side's)."""
    known = {option for verb in allowed for option in options_of(binary, verb)}
    for option in OPTION.findall(sentence.replace("setsid --fork", "setsid")):
        expect(option in known, f"{option} is no option of {' or '.join(allowed)}: {sentence.strip()[-400:]}")


CASES = {f"texts/{f.__name__.replace('_', '-')}": f for f in (
    options_in_sentences, options_in_documents, arguments_in_manual, completion_by_verb, values_as_typed, choices_are_words, usage_errors, no_untrue_words)}
