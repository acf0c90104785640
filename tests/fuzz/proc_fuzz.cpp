// Texts of /proc and answers of the kernel, in which names are the program's. The first byte says which text it is.
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <functional>
#include <set>
#include <string>

#include "core/base/proc_values.h"
#include "core/base/procfs.h"
#include "core/files/fdinfo.h"
#include "core/files/file_locks.h"
#include "core/files/net_table.h"
#include "core/files/unix_diag.h"
#include "core/freeze/cgroup_mounts.h"
#include "core/inject/visit_places.h"
#include "core/memory/vma.h"
#include "core/task/proc_text.h"
#include "fuzz.h"

namespace migrate::fuzz {
namespace {

void use_maps(std::string_view text) {
  const std::vector<MapsLine> maps = parse_maps(text);
  constexpr size_t kBytes = 0x4000;
  const auto area = find_free_area(maps, kBytes);
  if (!area) return;
  for (const MapsLine& m : maps)
    demand(m.range.end.get() <= area->get() || m.range.start.get() >= area->get() + kBytes ||
               m.range.start.get() > 1ull << 47,
           "an area that is in use");
}

void use_smaps(std::string_view text) {
  for (const Vma& v : parse_smaps(text)) {
    demand(v.range.start < v.range.end, "an empty mapping");
    v.describe();
  }
  for_each_vm_flags(text, [](const Vma&, const std::set<std::string>&) {});
}

void use_fdinfo(std::string_view text) {
  const FdInfo info = parse_fdinfo(std::string(text));
  for (const FileLock& lock : parse_file_locks(info))
    demand(lock.kind == 0 || (lock.start >= 0 && lock.length >= 0), "a lock out of range");
  fdinfo_number(info, "eventfd-count:", 16);
}

void use_mounts(std::string_view text) {
  for (const bool v2 : {false, true}) {
    find_cgroup_mount(text, v2, "freezer");
    find_cgroup_path(text, v2, "freezer");
  }
}

void use_status(std::string_view text) {
  const StatusFields status = parse_status(std::string(text));
  const auto attempt = [](const auto& work) {
    try {
      work();
    } catch (const Corrupt&) {
    }
  };
  for (const char* list : {"Uid", "Groups"})
    attempt([&] { parse_numbers<uint32_t>(status_field(status, list), list); });
  for (const char* mask : {"SigPnd", "CapEff"}) attempt([&] { parse_number(status_field(status, mask), mask, 16); });
  attempt([&] { demand(parse_number<uint32_t>(status_field(status, "Umask"), "Umask", 8) <= UINT32_MAX, "a mask"); });
  attempt([&] { parse_first_number(status_field(status, "VmRSS"), "VmRSS"); });
  attempt([&] { parse_number<int32_t>(status_field(status, "Adj"), "Adj"); });  // as oom_score_adj has it
  innermost(status_field(status, "NSpid"));
}

void use_ports(std::string_view text) {
  for (const int family : {AF_INET, AF_INET6}) try {
      const NetTableLine line = parse_net_table_line(text, family);
      demand(line.address.size() == (family == AF_INET ? 4u : 16u), "an address of another length");
    } catch (const Corrupt&) {
    }
}

struct Text {
  std::function<void(std::string_view)> use;
  const char* seed;
};

const std::array kTexts{
    Text{[](auto t) { parse_stat(t); },
         "42 (a b) c\n(d) S 1 42 42 34816 42 4194304 100 0 0 0 1 2 0 0 20 0 1 0 12345 1000000 100 18446744073709551615 "
         "4194304 4200000 140737488345000 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 6291456 6292000 7000000 140737488346000 "
         "140737488346100 140737488346100 140737488347000 0\n"},
    Text{
        use_status,
        "Name:\ta\\nb\nUmask:\t0022\nState:\tS (sleeping)\nUid:\t0\t0\t0\t0\nGroups:\t4 24 4294967295 \nNSpid:\t42\t7\n"
        "VmRSS:\t    1234 kB\nSigQ:\t0/1\nSigPnd:\t0000000000000000\nCapEff:\t000001ffffffffff\nAdj:\t-1000\n"},
    Text{use_maps,
         "00400000-00401000 r-xp 00000000 08:01 1234                               /usr/bin/a b\n"
         "7ffff7fc1000-7ffff7fc3000 r-xp 00000000 00:00 0                          [vdso]\n"
         "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n"},
    Text{use_smaps,
         "00400000-00401000 r-xp 00000000 08:01 1234                               /usr/bin/a b\nSize:  4 kB\n"
         "ProtectionKey:         0\nVmFlags: rd ex mr mw me \n"
         "7f0000000000-7f0000003000 rw-s 00000000 00:05 99                         /memfd:x (deleted)\n"
         "VmFlags: rd wr sh mr mw me ms hg \n"},
    Text{[](auto t) { parse_limits(t); },
         "Limit                     Soft Limit           Hard Limit           Units     \n"
         "Max cpu time              unlimited            unlimited            seconds   \n"
         "Max file size             unlimited            unlimited            bytes     \n"
         "Max data size             unlimited            unlimited            bytes     \n"
         "Max stack size            8388608              unlimited            bytes     \n"
         "Max core file size        0                    unlimited            bytes     \n"
         "Max resident set          unlimited            unlimited            bytes     \n"
         "Max processes             96000                96000                processes \n"
         "Max open files            1024                 524288               files     \n"
         "Max locked memory         8388608              8388608              bytes     \n"
         "Max address space         unlimited            unlimited            bytes     \n"
         "Max file locks            unlimited            unlimited            locks     \n"
         "Max pending signals       96000                96000                signals   \n"
         "Max msgqueue size         819200               819200               bytes     \n"
         "Max nice priority         0                    0                    \n"
         "Max realtime priority     0                    0                    \n"
         "Max realtime timeout      unlimited            unlimited            us        \n"},
    Text{[](auto t) { parse_timers(t); },
         "ID: 0\nsignal: 14/00007ffc12345678\nnotify: signal/tid.42\nClockID: 1\nID: 1\nsignal: 34/0\nnotify: "
         "none/pid.42\nClockID: 0\n"},
    Text{[](auto t) { parse_exec_start(t); },
         "a (42, #threads: 1)\n-----\nse.exec_start                                :       1234567.123456\n"},
    Text{[](auto t) { parse_syscall(t); }, "7 0x7ffd 0x1 0xffffffffffffffff 0x0 0x0 0x0 0x7ffd00 0x7f1200\n"},
    Text{use_fdinfo,
         "pos:\t0\nflags:\t02100002\nmnt_id:\t15\nino:\t77\nlock:\t1: POSIX  ADVISORY  WRITE 42 08:01:1234 0 EOF\n"
         "lock:\t2: FLOCK  ADVISORY  READ 42 08:01:1234 5 9\neventfd-count:               1f\n"},
    Text{use_mounts,
         "25 20 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
         "26 20 0:23 /a\\040b /sys/fs/cgroup/free\\134zer rw - cgroup cgroup rw,freezer\n0::/user.slice\n"
         "5:freezer,cpu:/a:b\n"},
    Text{[](auto t) { parse_clock_offsets(t); },
         "monotonic      -100000         0\nboottime        100000 999999999\n"},
    Text{
        use_ports,
        "   0: 0100007F:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1072 1 0000 100 0"},
    Text{use_ports,
         "   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 "
         "00:00000000 00000000  1000        0 20202 1 0000 100 0"},
};
constexpr uint8_t kAnswer = 0xff;  ///< not a text

/// The kernel's answer about a listening socket with a name.
std::vector<std::byte> sockets_answer() {
  struct {
    nlmsghdr header;
    unix_diag_msg message;
    rtattr name_header;
    char name[8];
    rtattr queue_header;
    uint32_t queue[2];
    nlmsghdr end;
  } answer{};
  answer.header.nlmsg_len = offsetof(decltype(answer), end);
  answer.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  answer.message = {AF_UNIX, SOCK_STREAM, 10, 0, 77, {1, 2}};
  answer.name_header = {RTA_LENGTH(8), UNIX_DIAG_NAME};
  std::memcpy(answer.name, "/run/so", 8);
  answer.queue_header = {RTA_LENGTH(8), UNIX_DIAG_RQLEN};
  answer.queue[1] = 5;
  answer.end = {sizeof answer.end, NLMSG_DONE, 0, 0, 0};
  const auto bytes = std::as_bytes(std::span(&answer, 1));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

const Target kTarget{"proc_fuzz", false};

void run(std::span<const std::byte> input) {
  if (input.empty()) return;
  const size_t which = std::to_integer<size_t>(input[0]);
  const std::string_view text(reinterpret_cast<const char*>(input.data()) + 1, input.size() - 1);
  try {
    if (which < kTexts.size()) kTexts[which].use(text);
    if (which == kAnswer) {
      std::vector<std::byte> answer(input.begin() + 1, input.end());  // aligned, as what recv(2) fills is
      std::map<uint32_t, UnixSocketInfo> found;
      parse_unix_sockets(answer, found);
    }
  } catch (const Error&) {  // as it should be
  }
}

std::vector<std::vector<std::byte>> seeds() {
  std::vector<std::vector<std::byte>> all;
  for (size_t i = 0; i < kTexts.size(); ++i) {
    const auto text = as_bytes_of(kTexts[i].seed);
    std::vector<std::byte>& seed = all.emplace_back(1, static_cast<std::byte>(i));
    seed.insert(seed.end(), text.begin(), text.end());
  }
  const std::vector<std::byte> answer = sockets_answer();
  std::vector<std::byte>& seed = all.emplace_back(1, std::byte{kAnswer});
  seed.insert(seed.end(), answer.begin(), answer.end());
  return all;
}

}  // namespace migrate::fuzz
