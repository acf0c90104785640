// Users and groups.
#include <grp.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>

#include "small.h"

namespace {

std::string ids() {
  uid_t u[3];
  gid_t g[3];
  must(getresuid(&u[0], &u[1], &u[2]), "getresuid");
  must(getresgid(&g[0], &g[1], &g[2]), "getresgid");
  std::string all;
  for (const unsigned id :
       {u[0], u[1], u[2], g[0], g[1], g[2], static_cast<unsigned>(setfsuid(-1U)), static_cast<unsigned>(setfsgid(-1U))})
    all += std::to_string(id) + " ";
  std::vector<gid_t> groups(70000);
  const int n = must(getgroups(static_cast<int>(groups.size()), groups.data()), "getgroups");
  for (int i = 0; i < n; ++i) all += "," + std::to_string(groups[static_cast<size_t>(i)]);
  return all;
}

Verify ids_stay(const std::function<void()>& become) {
  return in_child([=] {
    become();
    const std::string was = ids();
    return [=] { expect(ids() == was, "ids are " + ids().substr(0, 100) + ", were " + was.substr(0, 100)); };
  });
}

void to_user(uid_t real, uid_t effective, uid_t saved) { must(setresuid(real, effective, saved), "setresuid"); }
void to_group(gid_t real, gid_t effective, gid_t saved) { must(setresgid(real, effective, saved), "setresgid"); }

}  // namespace

WORKLOAD(credentials, nobody) {
  return ids_stay([] {
    to_group(65534, 65534, 65534);
    to_user(65534, 65534, 65534);
  });
}
WORKLOAD(credentials, real_user) {
  return ids_stay([] { to_user(1000, 0, 0); });
}
WORKLOAD(credentials, effective_user) {
  return ids_stay([] { to_user(0, 1000, 0); });
}
WORKLOAD(credentials, saved_user) {
  return ids_stay([] { to_user(1000, 1000, 0); });
}
WORKLOAD(credentials, three_users) {
  return ids_stay([] { to_user(1001, 1002, 1003); });
}
WORKLOAD(credentials, three_groups) {
  return ids_stay([] { to_group(1001, 1002, 1003); });
}
WORKLOAD(credentials, file_system_user) {
  return ids_stay([] { setfsuid(1234); });
}
WORKLOAD(credentials, file_system_group) {
  return ids_stay([] { setfsgid(1234); });
}
WORKLOAD(credentials, no_groups) {
  return ids_stay([] { must(setgroups(0, nullptr), "setgroups"); });
}
WORKLOAD(credentials, many_groups) {
  return ids_stay([] {
    std::vector<gid_t> groups;
    for (gid_t i = 0; i < 500; ++i) groups.push_back(3 * i + 7);
    must(setgroups(groups.size(), groups.data()), "setgroups");
    to_user(1000, 1000, 1000);
  });
}

// By what one may do with it: the saved id lets one come back.
WORKLOAD(credentials, saved_user_used) {
  return in_child([]() -> Verify {
    to_user(1000, 1000, 0);
    return [] {
      must(setresuid(-1U, 0, -1U), "setresuid to the saved id");
      must(setresuid(-1U, 1000, -1U), "setresuid");
    };
  });
}

WORKLOAD(credentials, group_used) {
  const int fd = place.open_file("for-the-group");
  must(fchown(fd, 0, 4711), "fchown");
  must(fchmod(fd, 0040), "fchmod");
  const std::string path = place.path("for-the-group");
  return in_child([=]() -> Verify {
    const gid_t groups[] = {4711};
    must(setgroups(1, groups), "setgroups");
    to_group(1000, 1000, 1000);
    to_user(1000, 1000, 1000);
    return [=] { close(must(open(path.c_str(), O_RDONLY | O_CLOEXEC), "open, which a group allows")); };
  });
}

// Threads may have credentials of their own.
WORKLOAD(credentials, of_thread) {
  const Verify thread = in_thread([] {
    must(syscall(SYS_setgroups, 0, nullptr), "setgroups");
    must(syscall(SYS_setresuid, 0, 1234, 0), "setresuid");
    return stays("ids of the thread", ids);
  });
  const Verify own = stays("ids of the main thread", ids);
  return [=] {
    thread();
    own();
  };
}
