// --allow-uid, --allow-gid and --deny-caps bind what is restored, whatever the sender's inventory said.
#include "migrate/session/guardian/identity_policy.h"

#include <gtest/gtest.h>
#include <linux/capability.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#include <functional>

#include "core/base/error.h"
#include "core/image/magic.h"
#include "ext/ext.pb.h"
#include "images/core.pb.h"
#undef sigmask  // a macro of <signal.h>, and a field of an image
#include "images/fdinfo.pb.h"
#include "images/fs.pb.h"
#include "images/mm.pb.h"
#include "images/pipe-data.pb.h"
#include "images/pstree.pb.h"
#include "images/sk-packet.pb.h"
#include "migrate/session/guardian/privileges.h"

namespace migrate {
namespace {

constexpr uint64_t bit(int capability) { return uint64_t{1} << capability; }
constexpr uint64_t kNetRaw = bit(CAP_NET_RAW), kCheckpoint = bit(40);
constexpr uint32_t kAlive = 1, kZombie = 6;

img::core_entry core(uint32_t uid, uint64_t permitted) {
  img::core_entry c;
  c.set_mtype(img::core_entry::X86_64);
  img::task_core_entry& tc = *c.mutable_tc();
  tc.set_task_state(kAlive), tc.set_exit_code(0), tc.set_personality(0), tc.set_flags(0), tc.set_blk_sigset(0);
  tc.set_comm("program");
  for (size_t i = 0; i < RLIM_NLIMITS; ++i) {
    img::rlimit_entry& limit = *tc.mutable_rlimits()->add_rlimits();
    limit.set_cur(0), limit.set_max(0);
  }
  img::thread_core_entry& t = *c.mutable_thread_core();
  t.set_futex_rla(0);
  t.set_futex_rla_len(0);
  img::creds_entry& creds = *t.mutable_creds();
  creds.set_uid(uid), creds.set_euid(uid), creds.set_suid(uid), creds.set_fsuid(uid);
  creds.set_gid(uid), creds.set_egid(uid), creds.set_sgid(uid), creds.set_fsgid(uid);
  creds.set_secbits(0);
  for (int i = 0; i < 2; ++i) {
    creds.add_cap_prm(static_cast<uint32_t>(permitted >> (32 * i)));
    creds.add_cap_eff(0), creds.add_cap_inh(0);
    creds.add_cap_bnd(0xffffffff);
  }
  return c;
}

/// A task with two threads and no files; parts of it can be changed before build().
struct Tree {
  img::core_entry leader, thread;
  img::mm_entry mm;
  ext::ThreadExt extra;
  std::vector<img::file_entry> files;
  std::string root = "/";
  bool in_queue = false;  ///< files wait at a socket, where the program may take them

  explicit Tree(img::core_entry one) : leader(one), thread(std::move(one)) {}
  Tree(img::core_entry one, img::core_entry two) : leader(std::move(one)), thread(std::move(two)) {}

  ImageSet build() const {
    ImageSet images;
    img::pstree_entry tree;
    tree.set_pid(1), tree.set_ppid(0), tree.set_pgid(1), tree.set_sid(1);
    tree.add_threads(1), tree.add_threads(2);
    images.put("pstree.img", magic::kPstree, tree);
    images.put("core-1.img", magic::kCore, leader);
    images.put("core-2.img", magic::kCore, thread);
    img::mm_entry memory = mm;
    for (auto set :
         {&img::mm_entry::set_mm_start_code, &img::mm_entry::set_mm_end_code, &img::mm_entry::set_mm_start_data,
          &img::mm_entry::set_mm_end_data, &img::mm_entry::set_mm_start_stack, &img::mm_entry::set_mm_start_brk,
          &img::mm_entry::set_mm_brk, &img::mm_entry::set_mm_arg_start, &img::mm_entry::set_mm_arg_end,
          &img::mm_entry::set_mm_env_start, &img::mm_entry::set_mm_env_end})
      (memory.*set)(0);
    memory.set_exe_file_id(0);
    images.put("mm-1.img", magic::kMm, memory);
    img::fs_entry fs;
    fs.set_cwd_id(0), fs.set_root_id(1000);
    images.put("fs-1.img", magic::kFs, fs);
    img::task_kobj_ids_entry ids;
    ids.set_vm_id(1), ids.set_files_id(1), ids.set_fs_id(1), ids.set_sighand_id(1);
    images.put("ids-1.img", magic::kIds, ids);
    images.put("migrate-ext.img", magic::kMigrateExt, extra);
    ImageWriter table = images.write("fdinfo-1.img", magic::kFdinfo), all = images.write("files.img", magic::kFiles);
    const auto add_number = [&](const img::file_entry& file, uint32_t fd) {
      img::fdinfo_entry e;
      e.set_id(file.id()), e.set_flags(0), e.set_type(file.type()), e.set_fd(fd);
      table.entry(e);
    };
    for (size_t i = 0; i < files.size(); ++i) {
      if (!in_queue) add_number(files[i], static_cast<uint32_t>(i));
      all.entry(files[i]);
    }
    if (in_queue) {
      // At one that waits itself.
      const img::file_entry outer = unix_socket(998), inner = unix_socket(999);
      add_number(outer, 0);
      all.entry(outer), all.entry(inner);
      ImageWriter queues = images.write("sk-queues.img", magic::kSkQueues);
      img::sk_packet_entry packet;
      packet.set_id_for(999), packet.set_length(0), packet.add_scm()->set_type(SCM_RIGHTS);
      for (const img::file_entry& file : files) packet.mutable_scm(0)->add_rights(file.id());
      queues.entry(packet);
      packet.set_id_for(998), packet.mutable_scm(0)->clear_rights(), packet.mutable_scm(0)->add_rights(999);
      queues.entry(packet);
    }
    img::file_entry folder;
    folder.set_type(img::fd_types::REG), folder.set_id(1000);
    img::reg_file_entry& reg = *folder.mutable_reg();
    reg.set_id(1000), reg.set_flags(0), reg.set_pos(0), reg.set_name(root);
    set_owner(*reg.mutable_fown());
    all.entry(folder);
    return images;
  }

  static img::file_entry unix_socket(uint32_t id) {
    img::file_entry e;
    e.set_type(img::fd_types::UNIXSK), e.set_id(id);
    img::unix_sk_entry& s = *e.mutable_usk();
    s.set_id(id), s.set_ino(id), s.set_type(SOCK_DGRAM), s.set_state(7), s.set_flags(0), s.set_uflags(0);
    s.set_backlog(0), s.set_peer(0), s.set_name("");
    set_owner(*s.mutable_fown());
    set_options(*s.mutable_opts());
    return e;
  }

  static void set_options(img::sk_opts_entry& o) {
    o.set_so_sndbuf(4096), o.set_so_rcvbuf(4096);
    o.set_so_snd_tmo_sec(0), o.set_so_snd_tmo_usec(0), o.set_so_rcv_tmo_sec(0), o.set_so_rcv_tmo_usec(0);
    o.set_so_buf_lock(3);
  }

  static void set_owner(img::fown_entry& owner) {
    owner.set_uid(0), owner.set_euid(0), owner.set_signum(0), owner.set_pid_type(0), owner.set_pid(0);
  }

  img::inet_sk_entry& add_socket(uint32_t port) {
    const auto id = static_cast<uint32_t>(files.size() + 1);
    img::file_entry& e = files.emplace_back();
    e.set_type(img::fd_types::INETSK), e.set_id(id);
    img::inet_sk_entry& s = *e.mutable_isk();
    s.set_id(id), s.set_ino(id), s.set_family(AF_INET), s.set_type(SOCK_STREAM), s.set_proto(IPPROTO_TCP),
        s.set_state(7);
    s.set_src_port(port), s.set_dst_port(0), s.set_flags(0), s.set_backlog(0);
    set_owner(*s.mutable_fown());
    set_options(*s.mutable_opts());
    return s;
  }
};

void enforce(const IdentityPolicy& policy, ImageSet images) { enforce_identity(policy, images); }

IdentityPolicy only_user(uint32_t uid) { return {{uid}, std::vector<uint32_t>{uid}, 0}; }

TEST(IdentityPolicy, AnythingGoesWithoutOne) {
  ImageSet images = Tree(core(0, ~uint64_t{0})).build();
  const auto before = images.images();
  EXPECT_NO_THROW(enforce_identity({}, images));
  EXPECT_EQ(images.images(), before);
}

TEST(IdentityPolicy, EveryThreadsUidIsLookedAt) {
  EXPECT_NO_THROW(enforce(only_user(1000), Tree(core(1000, 0)).build()));
  EXPECT_THROW(enforce({{1000}, {}, 0}, Tree(core(1000, 0), core(0, 0)).build()), Refusal);
  img::core_entry saved = core(1000, 0);
  saved.mutable_thread_core()->mutable_creds()->set_suid(0);
  EXPECT_THROW(enforce(only_user(1000), Tree(core(1000, 0), saved).build()), Refusal);
}

TEST(IdentityPolicy, EveryThreadsGroupsAreLookedAt) {
  const IdentityPolicy policy{{}, std::vector<uint32_t>{1000, 50}, 0};
  EXPECT_NO_THROW(enforce(policy, Tree(core(1000, 0)).build()));
  for (auto set : {&img::creds_entry::set_gid, &img::creds_entry::set_egid, &img::creds_entry::set_sgid,
                   &img::creds_entry::set_fsgid, &img::creds_entry::add_groups}) {
    img::core_entry disk = core(1000, 0), fine = disk;
    (disk.mutable_thread_core()->mutable_creds()->*set)(6);
    (fine.mutable_thread_core()->mutable_creds()->*set)(50);
    EXPECT_THROW(enforce(policy, Tree(core(1000, 0), disk).build()), Refusal);
    EXPECT_THROW(enforce(policy, Tree(disk, core(1000, 0)).build()), Refusal);
    EXPECT_NO_THROW(enforce(policy, Tree(fine).build()));
  }
}

TEST(IdentityPolicy, UsersComeWithTheGroupsThatTheyHaveHere) {
  EXPECT_EQ(groups_of_users({0}).front(), 0U);
  EXPECT_TRUE(groups_of_users({3'999'999'999}).empty());
}

TEST(IdentityPolicy, DeniedCapabilitiesOfEitherWordAreRefused) {
  for (const uint64_t denied : {kNetRaw, kCheckpoint})
    EXPECT_THROW(enforce({{}, {}, denied}, Tree(core(0, 0), core(0, denied)).build()), Refusal);
  img::core_entry ambient = core(0, 0);
  ambient.mutable_thread_core()->mutable_creds()->add_cap_amb(static_cast<uint32_t>(kNetRaw));
  EXPECT_THROW(enforce({{}, {}, kNetRaw}, Tree(core(0, 0), ambient).build()), Refusal);
}

TEST(IdentityPolicy, DeniedCapabilitiesLeaveTheBoundingSet) {
  ImageSet images = Tree(core(0, 0)).build();
  enforce_identity({{}, {}, kNetRaw | kCheckpoint}, images);
  for (const char* name : {"core-1.img", "core-2.img"}) {
    img::core_entry c;
    images.need(name, magic::kCore, c);
    EXPECT_EQ(c.thread_core().creds().cap_bnd(0), 0xffffffff & ~static_cast<uint32_t>(kNetRaw));
    EXPECT_EQ(c.thread_core().creds().cap_bnd(1), 0xffffffff & ~static_cast<uint32_t>(kCheckpoint >> 32));
  }
}

TEST(IdentityPolicy, WhoCallsItselfDeadIsNotLookedOver) {
  // A thread of a living task: the restore asks its leader alone, so its own word must not count.
  img::core_entry silent = core(1000, 0);
  silent.mutable_thread_core()->clear_creds();
  EXPECT_THROW(enforce(only_user(1000), Tree(core(1000, 0), silent).build()), Refusal);
  silent.mutable_tc()->set_task_state(kZombie);
  EXPECT_THROW(enforce(only_user(1000), Tree(core(1000, 0), silent).build()), Refusal);
  // The honest one: it has ended, and its leader says so.
  img::core_entry dead = core(0, 0);
  dead.clear_thread_core();
  dead.mutable_tc()->set_task_state(kZombie);
  EXPECT_NO_THROW(enforce(only_user(1000), Tree(dead).build()));
}

struct Case {
  const char* what;
  uint64_t capability;
  std::function<void(Tree&)> has;    ///< gives it to the program
  std::function<void(Tree&)> usual;  ///< ... as much of it as anybody may have
};

img::rlimit_entry& limit_of(Tree& t, int resource) {
  return *t.leader.mutable_tc()->mutable_rlimits()->mutable_rlimits(resource);
}

img::file_entry& add_file(Tree& t, img::fd_types type) {
  img::file_entry& e = t.files.emplace_back();
  e.set_type(type), e.set_id(static_cast<uint32_t>(t.files.size()));
  return e;
}

void add_lock(Tree& t, uint64_t bytes) {
  img::vma_entry& v = *t.mm.add_vmas();
  v.set_start(1 << 20), v.set_end((1 << 20) + bytes), v.set_pgoff(0), v.set_shmid(0), v.set_prot(3);
  v.set_flags(MAP_PRIVATE | MAP_LOCKED), v.set_status(1), v.set_fd(-1);
}

void add_epoll(Tree& t, uint32_t events) {
  img::file_entry& e = add_file(t, img::fd_types::EVENTPOLL);
  e.mutable_epfd()->set_id(e.id()), e.mutable_epfd()->set_flags(0);
  Tree::set_owner(*e.mutable_epfd()->mutable_fown());
  img::eventpoll_tfd_entry& target = *e.mutable_epfd()->add_tfd();
  target.set_id(1), target.set_tfd(0), target.set_events(events), target.set_data(0);
}

void add_timer(Tree& t, uint32_t clock) {
  img::file_entry& e = add_file(t, img::fd_types::TIMERFD);
  img::timerfd_entry& timer = *e.mutable_tfd();
  timer.set_id(e.id()), timer.set_flags(0), timer.set_clockid(clock), timer.set_ticks(0), timer.set_settime_flags(0);
  timer.set_vsec(0), timer.set_vnsec(0), timer.set_isec(0), timer.set_insec(0);
  Tree::set_owner(*timer.mutable_fown());
}

std::vector<Case> cases() {
  const HostBounds here = HostBounds::here();
  const auto scheduling = [](img::core_entry& c, uint32_t policy, uint32_t priority, int32_t nice) {
    c.mutable_thread_core()->set_sched_policy(policy);
    c.mutable_thread_core()->set_sched_prio(priority);
    c.mutable_thread_core()->set_sched_nice(nice);
  };
  return {
      {"a thread with real-time priority", bit(CAP_SYS_NICE), [=](Tree& t) { scheduling(t.thread, 1, 10, 0); },
       [=](Tree& t) { scheduling(t.thread, 3, 0, 19); }},
      {"nice below what its limit allows", bit(CAP_SYS_NICE), [=](Tree& t) { scheduling(t.leader, 0, 0, -5); },
       [=](Tree& t) { scheduling(t.leader, 0, 0, 5); }},
      {"real-time I/O", bit(CAP_SYS_NICE), [](Tree& t) { t.extra.set_tid(1), t.extra.set_ioprio(1 << 13 | 4); },
       [](Tree& t) { t.extra.set_tid(1), t.extra.set_ioprio(2 << 13 | 4); }},
      {"a hard limit above ours", bit(CAP_SYS_RESOURCE),
       [=](Tree& t) { limit_of(t, RLIMIT_NOFILE).set_max(here.hard_limits[RLIMIT_NOFILE] + 1); },
       [=](Tree& t) { limit_of(t, RLIMIT_NOFILE).set_max(here.hard_limits[RLIMIT_NOFILE]); }},
      {"out of the OOM killer's sight", bit(CAP_SYS_RESOURCE),
       [](Tree& t) { t.leader.mutable_tc()->set_oom_score_adj(-1000); },
       [](Tree& t) { t.leader.mutable_tc()->set_oom_score_adj(500); }},
      {"more locked memory than its limit", bit(CAP_IPC_LOCK),
       [](Tree& t) { add_lock(t, 1 << 20), limit_of(t, RLIMIT_MEMLOCK).set_max(1 << 16); },
       [](Tree& t) { add_lock(t, 1 << 16), limit_of(t, RLIMIT_MEMLOCK).set_max(1 << 16); }},
      {"a large send buffer", bit(CAP_NET_ADMIN),
       [=](Tree& t) { t.add_socket(0).mutable_opts()->set_so_sndbuf(static_cast<uint32_t>(here.send_buffer + 2)); },
       [=](Tree& t) { t.add_socket(0).mutable_opts()->set_so_sndbuf(static_cast<uint32_t>(here.send_buffer)); }},
      {"a large receive buffer", bit(CAP_NET_ADMIN),
       [=](Tree& t) { t.add_socket(0).mutable_opts()->set_so_rcvbuf(static_cast<uint32_t>(here.receive_buffer + 2)); },
       [=](Tree& t) {
         // As TCP made it grow.
         img::sk_opts_entry& o = *t.add_socket(0).mutable_opts();
         o.set_so_rcvbuf(static_cast<uint32_t>(here.grown_receive_buffer)), o.set_so_buf_lock(0);
       }},
      {"a mark", kNetRaw, [](Tree& t) { t.add_socket(0).mutable_opts()->set_so_mark(7); },
       [](Tree& t) { t.add_socket(0).mutable_opts()->set_so_mark(0); }},
      {"a high priority", bit(CAP_NET_ADMIN), [](Tree& t) { t.add_socket(0).mutable_opts()->set_so_priority(7); },
       [](Tree& t) { t.add_socket(0).mutable_opts()->set_so_priority(6); }},
      {"a low port", bit(CAP_NET_BIND_SERVICE),
       [=](Tree& t) { t.add_socket(static_cast<uint32_t>(here.first_free_port - 1)); },
       [=](Tree& t) { t.add_socket(static_cast<uint32_t>(here.first_free_port)); }},
      {"a timer that wakes the machine", bit(CAP_WAKE_ALARM), [](Tree& t) { add_timer(t, CLOCK_BOOTTIME_ALARM); },
       [](Tree& t) { add_timer(t, CLOCK_BOOTTIME); }},
      {"EPOLLWAKEUP", bit(CAP_BLOCK_SUSPEND), [](Tree& t) { add_epoll(t, EPOLLIN | EPOLLWAKEUP); },
       [](Tree& t) { add_epoll(t, EPOLLIN); }},
      {"a root folder of its own", bit(CAP_SYS_CHROOT), [](Tree& t) { t.root = "/srv/jail"; },
       [](Tree& t) { t.root = "/"; }},
      {"securebits", bit(CAP_SETPCAP),
       [](Tree& t) { t.thread.mutable_thread_core()->mutable_creds()->set_secbits(1 << 2); },
       [](Tree& t) { t.thread.mutable_thread_core()->mutable_creds()->set_secbits(1 << 4); }},
  };
}

TEST(IdentityPolicy, WhatOnlyACapabilityGivesComesWithIt) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.what);
    Tree hostile(core(1000, 0)), holder(core(1000, c.capability)), usual(core(1000, 0)), other(core(0, 0));
    c.has(hostile), c.has(holder), c.usual(usual), c.has(other);
    EXPECT_THROW(enforce(only_user(1000), hostile.build()), Refusal);
    EXPECT_THROW(enforce({{}, {}, ~uint64_t{0}}, other.build()), Refusal);
    EXPECT_NO_THROW(enforce(only_user(1000), holder.build()));
    EXPECT_NO_THROW(enforce(only_user(1000), usual.build()));
    // Root, which may come, could have given it.
    EXPECT_NO_THROW(enforce({{}, std::vector<uint32_t>{1000}, 0}, hostile.build()));
    EXPECT_NO_THROW(enforce({{0, 1000}, {}, 0}, hostile.build()));
    hostile.in_queue = holder.in_queue = usual.in_queue = !hostile.files.empty();
    EXPECT_THROW(enforce(only_user(1000), hostile.build()), Refusal) << "in a queue";
    EXPECT_NO_THROW(enforce(only_user(1000), holder.build())) << "in a queue";
    EXPECT_NO_THROW(enforce(only_user(1000), usual.build())) << "in a queue";
    try {
      enforce(only_user(1000), hostile.build());
    } catch (const Refusal& e) {
      EXPECT_NE(std::string(e.what()).find("task 1 has "), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find("CAP_"), std::string::npos) << e.what();
    }
  }
}

TEST(IdentityPolicy, ItsOwnLimitsAllowSomeOfIt) {
  Tree tree(core(1000, 0));
  tree.leader.mutable_thread_core()->set_sched_policy(2);
  tree.leader.mutable_thread_core()->set_sched_prio(10);
  tree.thread.mutable_thread_core()->set_sched_nice(-5);
  const HostBounds here = HostBounds::here();
  limit_of(tree, RLIMIT_RTPRIO).set_max(10);
  limit_of(tree, RLIMIT_NICE).set_max(25);
  // Limits that are themselves above the host's are refused; none are raised here.
  if (here.hard_limits[RLIMIT_RTPRIO] >= 10 && here.hard_limits[RLIMIT_NICE] >= 25) {
    EXPECT_NO_THROW(enforce(only_user(1000), tree.build()));
  } else {
    EXPECT_THROW(enforce(only_user(1000), tree.build()), Refusal);
  }
  limit_of(tree, RLIMIT_RTPRIO).set_max(9);
  EXPECT_THROW(enforce(only_user(1000), tree.build()), Refusal);
}

}  // namespace
}  // namespace migrate
