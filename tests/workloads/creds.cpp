// Ids, groups, capabilities, securebits, no_new_privs, dumpable, parent-death signal; also of a child that differs from
// its parent and has dumpable off.
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <array>
#include <csignal>
#include <filesystem>
#include <string>

#include "workload.h"

using namespace workload;

namespace {

struct Identity {
  std::array<uid_t, 3> uid{}, gid{};
  uid_t fsuid = 0, fsgid = 0;
  std::array<gid_t, 4> groups{};
  int group_count = 0;
  std::array<uint64_t, 5> caps{};  // effective, permitted, inheritable, bounding, ambient
  int securebits = 0, no_new_privs = 0, dumpable = 0, death_signal = 0, keep = 0;
};

Identity read_identity() {
  Identity i;
  must(getresuid(&i.uid[0], &i.uid[1], &i.uid[2]), "getresuid");
  must(getresgid(&i.gid[0], &i.gid[1], &i.gid[2]), "getresgid");
  i.fsuid = static_cast<uid_t>(syscall(SYS_setfsuid, -1));
  i.fsgid = static_cast<gid_t>(syscall(SYS_setfsgid, -1));
  i.group_count = must(getgroups(4, i.groups.data()), "getgroups");
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  must(syscall(SYS_capget, &header, data), "capget");
  for (int k = 0; k < 2; ++k) {
    i.caps[0] |= uint64_t{data[k].effective} << (32 * k);
    i.caps[1] |= uint64_t{data[k].permitted} << (32 * k);
    i.caps[2] |= uint64_t{data[k].inheritable} << (32 * k);
  }
  for (unsigned long c = 0; c < 64; ++c) {
    if (prctl(PR_CAPBSET_READ, c) == 1) i.caps[3] |= uint64_t{1} << c;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, c, 0, 0) == 1) i.caps[4] |= uint64_t{1} << c;
  }
  i.securebits = prctl(PR_GET_SECUREBITS);
  i.no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
  i.dumpable = prctl(PR_GET_DUMPABLE);
  prctl(PR_GET_PDEATHSIG, &i.death_signal);
  i.keep = prctl(PR_GET_KEEPCAPS);
  return i;
}

void compare(const Identity& got, const Identity& want, const std::string& who) {
  for (size_t k = 0; k < 3; ++k) {
    expect_equal(got.uid[k], want.uid[k], who + "uid " + std::to_string(k));
    expect_equal(got.gid[k], want.gid[k], who + "gid " + std::to_string(k));
  }
  expect_equal(got.fsuid, want.fsuid, who + "fsuid");
  expect_equal(got.fsgid, want.fsgid, who + "fsgid");
  expect_equal(got.group_count, want.group_count, who + "number of groups");
  expect(got.groups == want.groups, who + "groups changed");
  const char* names[] = {"effective", "permitted", "inheritable", "bounding", "ambient"};
  for (size_t k = 0; k < 5; ++k) expect_equal(got.caps[k], want.caps[k], who + names[k] + " capabilities");
  expect_equal(got.securebits, want.securebits, who + "securebits");
  expect_equal(got.no_new_privs, want.no_new_privs, who + "no_new_privs");
  expect_equal(got.dumpable, want.dumpable, who + "dumpable");
  expect_equal(got.death_signal, want.death_signal, who + "parent-death signal");
  expect_equal(got.keep, want.keep, who + "keepcaps");
}

void become(uid_t uid, gid_t gid, uint64_t permitted, uint64_t effective, uint64_t inheritable) {
  const gid_t groups[3] = {gid + 1, gid + 2, gid + 40};
  must(setgroups(3, groups), "setgroups");
  must(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME), "PR_CAPBSET_DROP");
  must(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED), "securebits");
  must(setresgid(gid, gid, gid + 1), "setresgid");
  must(setresuid(uid, uid, uid + 5), "setresuid");
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  data[0] = {static_cast<uint32_t>(effective), static_cast<uint32_t>(permitted), static_cast<uint32_t>(inheritable)};
  must(syscall(SYS_capset, &header, data), "capset");
}

struct Answer {
  std::atomic<uint32_t> asked{0}, answered{0};
  char failure[200];
};

[[noreturn]] void child_main(Answer& answer) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  setresuid(3000, 3000, 3000);
  prctl(PR_SET_DUMPABLE, 0);
  prctl(PR_SET_PDEATHSIG, SIGUSR2);  // a change of ids cleared it
  struct sigaction die = {};
  die.sa_handler = [](int) { _exit(0); };
  sigaction(SIGUSR2, &die, nullptr);
  const Identity mine = read_identity();
  answer.answered = 1;
  uint32_t seen = 0;
  while (getppid() != 1) {
    sleep_ms(5);
    if (answer.asked == seen) continue;
    seen = answer.asked;
    answer.failure[0] = 0;
    try {
      compare(read_identity(), mine, "child's ");
    } catch (const std::exception& e) {
      std::snprintf(answer.failure, sizeof answer.failure, "%s", e.what());
    }
    answer.answered = seen + 1;
  }
  _exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        // Its own, so that it may open them again: files of root's in a folder that others can change would be refused.
        must(chown(w.dir().c_str(), 2000, 2000), "chown");
        for (const auto& file : std::filesystem::directory_iterator(w.dir()))
          must(chown(file.path().c_str(), 2000, 2000), "chown");
        const uint64_t setuid_caps = 1 << CAP_SETUID | 1 << CAP_KILL;
        become(2000, 2000, setuid_caps | 1 << CAP_NET_BIND_SERVICE | 1 << CAP_CHOWN, setuid_caps,
               1 << CAP_NET_BIND_SERVICE);
        must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0), "PR_CAP_AMBIENT_RAISE");
        must(prctl(PR_SET_DUMPABLE, 1), "PR_SET_DUMPABLE");
        auto* answer = shared_memory<Answer>();
        if (must(fork(), "fork") == 0) child_main(*answer);
        must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
        await([&] { return answer->answered == 1; }, "the child");
        const Identity mine = read_identity();
        w.serve([&] {
          compare(read_identity(), mine, "");
          const uint32_t n = ++answer->asked;
          await([&] { return answer->answered == n + 1; }, "the child's answer");
          expect(answer->failure[0] == 0, answer->failure);
        });
      },
      argv[0]);
}
