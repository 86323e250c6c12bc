"""What a hostile agent tries: one shell command each, and how it must be refused.

Words in braces are filled in with what the attacker could at best know of the machine: folders,
process ids and ports (``facts`` of the tests). `COMMON` is tried on the laptop and in pods.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attack:
    """A command that the agent's shell runs, and a pattern that must be in what it prints."""

    name: str
    command: str
    refusal: str


GIT_SECRET = "sk-very-secret-of-a-git-host"
GONE = "No such file|nonexistent"
READ_ONLY = "Read-only file system"
DENIED = "Permission denied"
NOT_PERMITTED = "Operation not permitted"
CLOSED = "timed out"
# What is said on stdout and on stderr comes in any order.
_CLOSED_TO_ALL = r"(?s)\A(?=.*goose).*No such device or address"
_PTRACE, _ATTACH = 101, 16


def _python(code: str) -> str:
    return f"{{python}} -I -c '{code}'"


def _syscall(*call: int | str) -> str:
    arguments = ", ".join(str(one) for one in call)
    return _python(
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); "
        f'print(c.syscall({arguments}), "errno", ctypes.get_errno())'
    )


_RELAY_TOKEN = "-H \"$(git config --get-regexp extraheader | cut -d' ' -f2-)\""


def _git_relay(path: str, header: str = _RELAY_TOKEN) -> str:
    """Ask the relay that git is configured with for a path."""
    base = "$(git config --get-regexp insteadof | sed 's/^url.//; s/git.invalid.*//')"
    return f'curl -sS --path-as-is {header} "{base}{path}"'


def _connect(host: str, port: str) -> str:
    return _python(f'import socket; socket.create_connection(("{host}", {port}), 2)')


def _bind(host: str, option: str) -> str:
    return _python(
        "import socket; s = socket.socket(); "
        f"s.setsockopt(socket.SOL_SOCKET, socket.{option}, 1); "
        f'print(s.bind(("{host}", {{agentd_port}})))'
    )


COMMON = (
    # The provider's key and agentd's token
    Attack("every environ", "cat /proc/[0-9]*/environ | tr '\\0' '\\n'", "GREYLAG_PROCESS_GROUP="),
    Attack("execd's environ", "cat /proc/1/environ", DENIED),
    Attack("execd's memory map", "cat /proc/1/maps", DENIED),
    Attack("execd's memory", "head -c 1 /proc/1/mem", DENIED),
    Attack("execd's files", "cat /proc/1/fd/2 </dev/null", DENIED),
    Attack(
        "a search for the key",
        "grep -rIl {key_start}very {searched} || echo found none",
        "found none",
    ),
    # agentd's code and state
    Attack("agentd's state", "ls {state}", GONE),
    Attack("a false port", 'echo \'{{"port": 1}}\' > {state}/listening.json', GONE),
    Attack("a false journal", "echo x > {state}/turns/0.sse", GONE),
    Attack("agentd's records", "echo x >> {state}/agentd.db", GONE),
    Attack("agentd's records, by a link", "ln -sfn {state} l; cat l/agentd.db; rm l", GONE),
    Attack("a module beside the volume", "echo 'x' > {volume}/structlog.py", READ_ONLY),
    Attack("a library", "echo 'x' >> {structlog}", READ_ONLY),
    Attack("Greylag itself", "echo 'x' >> {greylag}", READ_ONLY),
    Attack("another folder for the state", "ln -s /tmp {volume}/state", READ_ONLY),
    Attack("another workspace", "mv {volume}/workspace {volume}/w", READ_ONLY + "|busy"),
    # execd
    Attack("stop execd for ever", "kill -STOP 1; kill -9 1; echo sent", "sent"),
    Attack("trace execd", _syscall(_PTRACE, _ATTACH, 1, 0, 0), "-1 errno 1"),
    # goose, whose child the shell is
    Attack("speak to goose", "cat /proc/$PPID/comm; echo x > /proc/$PPID/fd/0", _CLOSED_TO_ALL),
    Attack("speak as goose", "cat /proc/$PPID/comm; echo x > /proc/$PPID/fd/1", _CLOSED_TO_ALL),
    # The machine
    Attack("a system file", "echo x >> /etc/profile", READ_ONLY),
    Attack("a container engine", "ls /run/docker.sock /run/containerd/containerd.sock", GONE),
    Attack("disks", "ls /dev/sda /dev/vda /dev/mem", GONE),
    Attack("a device", "mknod /tmp/disk b 8 0", NOT_PERMITTED),
    Attack(
        "the kernel's settings",
        "cat /proc/sys/kernel/core_pattern > /proc/sys/kernel/core_pattern",
        READ_ONLY + "|" + DENIED,
    ),
    Attack(
        "the kernel's keyboard",
        "printf '' > /proc/sysrq-trigger",
        f"{READ_ONLY}|{DENIED}|{GONE}",
    ),
    Attack("control groups", "mkdir /sys/fs/cgroup/mine", READ_ONLY + "|" + DENIED),
    # The kernel
    Attack("a user namespace", "unshare --user true", NOT_PERMITTED),
    Attack("a namespace of a child", _syscall(56, 0x10000000 | 17, 0, 0, 0, 0), "-1 errno 1"),
    Attack("a mount", _syscall(165, 0, 0, 0, 0, 0), "-1 errno 1"),
    Attack("another's namespaces", "nsenter --target 1 --net true", DENIED + "|" + NOT_PERMITTED),
    Attack("keys of the kernel", _syscall(250, 0, 0), "-1 errno 1"),
    Attack("bpf", _syscall(321, 0, 0, 0), "-1 errno 1"),
    Attack("raw packets", _python("import socket; socket.socket(socket.AF_PACKET)"), NOT_PERMITTED),
    Attack("the machine's name", "hostname mine", "must be root|you don't have permission|"
           + NOT_PERMITTED),
    Attack(
        "more of the provider than models",
        _python(
            "import os, urllib.request as u; e = os.environ; "
            'r = u.Request(e["OPENAI_HOST"] + "/v1/files", '
            'headers={{"Authorization": "Bearer " + e["OPENAI_API_KEY"]}}); u.urlopen(r)'
        ),
        "403",
    ),
    # The secrets for git hosts, and the relay that adds them
    Attack("a git secret in its files", "git config --list --show-origin; cat ~/.git-credentials "
           "~/.netrc", GONE),
    Attack("a git secret from git", "printf 'protocol=https\nhost=git.invalid\n\n' | "
           "GIT_TERMINAL_PROMPT=0 git credential fill", "could not read Username"),
    Attack("more of a git host than git", _git_relay("git.invalid/api/v3/user"),
           "git's own requests and nothing else"),
    Attack("more of a git host, astray", _git_relay(
        "git.invalid/a/%2e%2e/user/info/refs?service=git-upload-pack"
    ), "git's own requests and nothing else"),
    Attack("more of a git host, as if it had led there", _git_relay(
        "-/" + "0" * 64 + "/git.invalid/api/v3/user"
    ), "git's own requests and nothing else"),
    Attack("a git host that nobody has a secret for", _git_relay(
        "127.0.0.1:{agentd_port}/a/info/refs?service=git-upload-pack"
    ), "There is no secret for"),
    Attack("the git relay without its token", _git_relay(
        "git.invalid/a/info/refs?service=git-upload-pack", header=""
    ), "needs its own token"),
)  # fmt: skip

ON_LAPTOP = (
    Attack("agentd's environ", "cat /proc/{agentd}/environ", GONE),
    Attack("agentd's root", "ls /proc/{agentd}/root/", GONE),
    Attack("the settings beside Greylag's start", "cat {start}/.env", GONE),
    Attack("files in the start folder", "cat {start}/notes {start}/../notes", GONE),
    Attack("the environment's record", "cat {folder}/environment.json", GONE),
    Attack("agentd's log", "cat {folder}/agentd.log", GONE),
    Attack("the records of all", "cat {data}/greylag.db", GONE),
    Attack("the key of all secrets", "cat {data}/secret-key", GONE),
    Attack("Greylag's token", "cat {data}/token", GONE),
    Attack("agentd's way to execd", _python(
        'import socket; socket.socket(socket.AF_UNIX).connect("{state}/execd.sock")'
    ), GONE),
    Attack("a module beside agentd's folder", "echo 'x' > {folder}/structlog.py", READ_ONLY),
    Attack("the filter of system calls", "cat {folder}/seccomp", GONE),
    Attack("kill agentd", "kill -9 {agentd}", "No such process"),
    Attack("trace agentd", _syscall(_PTRACE, _ATTACH, "{agentd}", 0, 0), "-1 errno 3"),
    Attack("another environment's workspace", "cat {other}/workspace/secret", GONE),
    Attack("another environment's folder", "ls {other}/..", GONE),
    Attack("the home folder", "ls {home}/.ssh {home}/.bash_history", GONE),
    Attack("a profile in the home folder", "echo x >> {home}/.profile", READ_ONLY),
    Attack("io_uring", _syscall(425, 1, 0), "-1 errno 1"),
    Attack("more memory than a process may have", _python("bytearray(2 << 30)"), "MemoryError"),
    Attack(
        "to be spared when memory is short",
        "echo -1000 > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj",
        DENIED,
    ),
    # The network, which is strict
    Attack("Greylag's web", _connect("127.0.0.1", "{web}"), "Connection refused"),
    Attack("agentd's port", _connect("127.0.0.1", "{agentd_port}"), "Connection refused"),
    Attack("the internet", _connect("192.0.2.1", "80"), "Network is unreachable"),
    Attack("metadata of a cloud", _connect("169.254.169.254", "80"), "Network is unreachable"),
)  # fmt: skip

IN_POD = (
    Attack("agentd among the processes", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' |"
           " grep -c greylag.agent[d] || echo none seen", "none seen"),
    Attack("memory that agentd shares", "ls -A /dev/shm; echo no more", '"text": "no more'),
    Attack("agentd's way to execd", _python(
        'import socket, struct; s = socket.socket(socket.AF_UNIX); s.connect("{socket}"); '
        'q = b"{{\\"version\\": 1, \\"operation\\": \\"hello\\"}}"; '
        's.sendall(struct.pack("!BI", 1, len(q)) + q); print("got", s.recv(999))'
    ), "got b''|reset by peer|Broken pipe"),
    Attack("agentd without its token", "curl -sS -o /dev/null -w 'was %{{http_code}}' "
           "http://127.0.0.1:{agentd_port}/api/v1/sessions", "was 401"),
    Attack("agentd's port", _bind("", "SO_REUSEADDR"), "Address already in use"),
    Attack("agentd's port, shared", _bind("127.0.0.1", "SO_REUSEPORT"), "Address already in use"),
    Attack("a token of an account",
           "cat /var/run/secrets/kubernetes.io/serviceaccount/token", GONE),
    Attack("files of the node", "ls /proc/1/root/", DENIED),
    Attack("the node's disk, outside of what is counted",
           "find / -regex '/\\(proc\\|sys\\|tmp\\|environment\\)' -prune "
           "-o -type f -writable -print 2>/dev/null | grep . || echo none found", "none found"),
    # The network, which policies bound
    Attack("another environment's pod", _connect("{other_pod}", "{agentd_port}"), CLOSED),
    Attack("another environment's Service", _connect("{other_service}", "{agentd_port}"), CLOSED),
    Attack("another environment's balancer", _connect("{other_balancer}", "{agentd_port}"), CLOSED),
    Attack("the API server", _connect("{api}", "443"), CLOSED),
    Attack("the API server on its node", _connect("{node}", "6443"), CLOSED),
    Attack("the node's kubelet", _connect("{node}", "10250"), CLOSED),
    Attack("the store and the web", _connect("{platform}", "{store_port}"), CLOSED),
    Attack("metadata of a cloud", _connect("169.254.169.254", "80"), CLOSED),
    Attack("metadata of Azure", _connect("168.63.129.16", "80"), CLOSED),
    Attack("metadata in IPv6", _connect("fd00:ec2::254", "80"),
           CLOSED + "|unreachable|not available"),
)  # fmt: skip

# Tries all that it finds as the token, for whatever question it is told of.
ANSWER = """
import glob, json, os, time, urllib.error, urllib.request
while not os.path.exists("question"):
    time.sleep(0.05)
question = json.load(open("question"))
tokens = [os.environ["OPENAI_API_KEY"], ""]
for path in glob.glob("/proc/*/environ"):
    try:
        tokens += [one.partition("=")[2] for one in open(path).read().split(chr(0))]
    except OSError:
        pass
said = set()
for token in tokens:
    request = urllib.request.Request(
        question["url"],
        data=json.dumps({"decision": "allow_once"}).encode(),
        headers={"Authorization": "Bearer " + token, "Content-Type": "application/json"},
    )
    try:
        said.add(urllib.request.urlopen(request).status)
    except (urllib.error.HTTPError) as error:
        said.add(error.code)
    except (ValueError, OSError) as error:
        said.add(str(error))
json.dump(sorted(map(str, said)), open("answers.new", "w"))
os.rename("answers.new", "answers")
"""
