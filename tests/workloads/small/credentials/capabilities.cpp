// Capabilities: each set, and what they are good for.
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "small.h"

namespace {

struct Sets {
  uint64_t effective, permitted, inheritable;
};

Sets read_sets() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct d[2] = {};
  must(syscall(SYS_capget, &header, d), "capget");
  return {d[0].effective | uint64_t{d[1].effective} << 32, d[0].permitted | uint64_t{d[1].permitted} << 32,
          d[0].inheritable | uint64_t{d[1].inheritable} << 32};
}

void write_sets(const Sets& s) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  __user_cap_data_struct d[2] = {{low(s.effective), low(s.permitted), low(s.inheritable)},
                                 {low(s.effective >> 32), low(s.permitted >> 32), low(s.inheritable >> 32)}};
  must(syscall(SYS_capset, &header, d), "capset");
}

uint64_t bit(int capability) { return uint64_t{1} << capability; }

/// Lines of status that begin so, of this thread.
std::string sets_of_status() {
  const std::string status = text_of("/proc/thread-self/status");
  std::string all;
  for (const char* set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}) all += field(status, set) + " ";
  return all + std::to_string(prctl(PR_GET_SECUREBITS));
}

Verify sets_stay(const std::function<void()>& change) {
  return in_child([=] {
    change();
    const std::string was = sets_of_status();
    return [=] { expect(sets_of_status() == was, "capabilities are " + sets_of_status() + ", were " + was); };
  });
}

}  // namespace

WORKLOAD(credentials, effective_set) {
  return sets_stay([] {
    Sets s = read_sets();
    s.effective &= ~(bit(CAP_KILL) | bit(CAP_CHOWN));
    write_sets(s);
  });
}

WORKLOAD(credentials, permitted_set) {
  return sets_stay([] {
    Sets s = read_sets();
    s.permitted = s.effective &= ~(bit(CAP_NET_RAW) | bit(CAP_SYS_TIME));
    write_sets(s);
  });
}

WORKLOAD(credentials, inheritable_set) {
  return sets_stay([] {
    Sets s = read_sets();
    s.inheritable = s.permitted & (bit(CAP_NET_BIND_SERVICE) | bit(CAP_FOWNER));
    write_sets(s);
  });
}

WORKLOAD(credentials, bounding_set) {
  return sets_stay([] {
    for (const int c : {CAP_SYS_TIME, CAP_SYS_BOOT, CAP_NET_ADMIN, CAP_AUDIT_READ})
      must(prctl(PR_CAPBSET_DROP, c), "prctl");
  });
}

WORKLOAD(credentials, ambient_set) {
  return sets_stay([] {
    Sets s = read_sets();
    s.inheritable = bit(CAP_NET_BIND_SERVICE) | bit(CAP_KILL);
    write_sets(s);
    must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0), "prctl");
  });
}

WORKLOAD(credentials, no_capabilities) {
  return sets_stay([] { write_sets({0, 0, 0}); });
}

WORKLOAD(credentials, capabilities_kept) {
  return sets_stay([] {
    must(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl");
    must(setresuid(1000, 1000, 1000), "setresuid");
    write_sets({bit(CAP_CHOWN), bit(CAP_CHOWN) | bit(CAP_NET_RAW), 0});
  });
}

WORKLOAD(credentials, securebits) {
  return sets_stay([] { must(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NO_CAP_AMBIENT_RAISE), "prctl"); });
}

WORKLOAD(credentials, securebits_locked) {
  return in_child([]() -> Verify {
    must(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS_LOCKED | SECBIT_NOROOT_LOCKED), "prctl");
    return [] {
      expect_equal(prctl(PR_GET_SECUREBITS), SECBIT_KEEP_CAPS_LOCKED | SECBIT_NOROOT_LOCKED, "the securebits");
      expect(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == -1, "a locked bit can be changed");
    };
  });
}

// What is not in the effective set is not allowed.
WORKLOAD(credentials, capability_missed) {
  const int fd = place.open_file("f");
  return in_child([=]() -> Verify {
    Sets s = read_sets();
    s.effective &= ~bit(CAP_CHOWN);
    write_sets(s);
    return [=] { expect(fchown(fd, 5, 5) == -1 && errno == EPERM, "an owner can be changed without CAP_CHOWN"); };
  });
}

WORKLOAD(credentials, capability_used) {
  const int fd = place.open_file("f");
  return in_child([=]() -> Verify {
    must(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl");
    must(setresuid(1000, 1000, 1000), "setresuid");
    write_sets({bit(CAP_CHOWN), bit(CAP_CHOWN), 0});
    return [=] { must(fchown(fd, 5, 5), "chown, which CAP_CHOWN allows"); };
  });
}

WORKLOAD(credentials, capabilities_of_thread) {
  const Verify thread = in_thread([] {
    Sets s = read_sets();
    s.permitted = s.effective = bit(CAP_KILL) | bit(CAP_NET_RAW);
    write_sets(s);
    return stays("capabilities of the thread", sets_of_status);
  });
  const Verify own = stays("capabilities of the main thread", sets_of_status);
  return [=] {
    thread();
    own();
  };
}
