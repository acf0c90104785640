#include "core/image/leave_out.h"

#include <fcntl.h>
#include <sys/eventfd.h>

#include <cstdlib>
#include <map>
#include <type_traits>

#include "core/base/error.h"
#include "ext/ext.pb.h"
#include "ext/files.pb.h"
#include "images/core.pb.h"
#include "images/fdinfo.pb.h"
#include "images/file-lock.pb.h"
#include "images/fs.pb.h"
#include "images/memfd.pb.h"
#include "images/mm.pb.h"
#include "images/pipe-data.pb.h"
#include "images/sk-packet.pb.h"

namespace migrate {
namespace {

using google::protobuf::MessageLite;
template <typename Entry>
using Subjects = std::map<std::string, void (*)(Entry&)>;

// What a task has, and each of its threads.
const Subjects<img::core_entry>& of_cores() {
  static const Subjects<img::core_entry> all{
      {"signal dispositions",
       [](img::core_entry& c) {
         for (auto& action : *c.mutable_tc()->mutable_sigactions()) action.set_sigaction(0);
       }},
      {"flags of signal handlers",
       [](img::core_entry& c) {
         for (auto& action : *c.mutable_tc()->mutable_sigactions()) action.set_flags(action.flags() & 0x04000000);
       }},
      {"masks of signal handlers",
       [](img::core_entry& c) {
         for (auto& action : *c.mutable_tc()->mutable_sigactions()) action.set_mask(0);
       }},
      {"signal masks",
       [](img::core_entry& c) {
         if (c.has_tc()) c.mutable_tc()->set_blk_sigset(0);
         c.mutable_thread_core()->set_blk_sigset(0);
       }},
      {"queued signals", [](img::core_entry& c) { c.mutable_tc()->mutable_signals_s()->clear_signals(); }},
      {"queued signals of threads",
       [](img::core_entry& c) { c.mutable_thread_core()->mutable_signals_p()->clear_signals(); }},
      {"alternative stacks",
       [](img::core_entry& c) {
         auto& stack = *c.mutable_thread_core()->mutable_sas();
         stack.set_ss_sp(0);
         stack.set_ss_size(0);
         stack.set_ss_flags(2);  // SS_DISABLE
       }},
      {"soft limits",
       [](img::core_entry& c) {
         for (auto& limit : *c.mutable_tc()->mutable_rlimits()->mutable_rlimits()) limit.set_cur(limit.max());
       }},
      {"interval timers",
       [](img::core_entry& c) {
         auto& timers = *c.mutable_tc()->mutable_timers();
         for (auto* one : {timers.mutable_real(), timers.mutable_virt(), timers.mutable_prof()}) {
           one->set_isec(0);
           one->set_iusec(0);
           one->set_vsec(0);
           one->set_vusec(0);
         }
       }},
      {"POSIX timers", [](img::core_entry& c) { c.mutable_tc()->mutable_timers()->clear_posix(); }},
      {"personality", [](img::core_entry& c) { c.mutable_tc()->set_personality(0); }},
      {"subreaper", [](img::core_entry& c) { c.mutable_tc()->set_child_subreaper(false); }},
      {"out-of-memory score", [](img::core_entry& c) { c.mutable_tc()->set_oom_score_adj(0); }},
      {"exit codes", [](img::core_entry& c) { c.mutable_tc()->set_exit_code(0); }},
      {"names", [](img::core_entry& c) { c.mutable_thread_core()->set_comm("nameless"); }},
      {"niceness", [](img::core_entry& c) { c.mutable_thread_core()->set_sched_nice(0); }},
      {"scheduling policies",
       [](img::core_entry& c) {
         c.mutable_thread_core()->set_sched_policy(0);
         c.mutable_thread_core()->set_sched_prio(0);
       }},
      {"death signals", [](img::core_entry& c) { c.mutable_thread_core()->set_pdeath_sig(0); }},
      {"robust lists",
       [](img::core_entry& c) {
         c.mutable_thread_core()->set_futex_rla(0);
         c.mutable_thread_core()->set_futex_rla_len(0);
       }},
      {"restartable sequences", [](img::core_entry& c) { c.mutable_thread_core()->clear_rseq_entry(); }},
      {"clear_child_tid", [](img::core_entry& c) { c.mutable_thread_info()->set_clear_tid_addr(0); }},
      {"GS bases", [](img::core_entry& c) { c.mutable_thread_info()->mutable_gpregs()->set_gs_base(0); }},
      {"vector registers",
       [](img::core_entry& c) {
         for (auto& part : *c.mutable_thread_info()->mutable_fpregs()->mutable_xmm_space()) part = 0;
       }},
      {"control of floating point",
       [](img::core_entry& c) {
         c.mutable_thread_info()->mutable_fpregs()->set_mxcsr(0x1f80);
         c.mutable_thread_info()->mutable_fpregs()->set_cwd(0x37f);
       }},
  };
  return all;
}

const Subjects<img::creds_entry>& of_credentials() {
  static const Subjects<img::creds_entry> all{
      {"user ids",
       [](img::creds_entry& c) {
         c.set_uid(0);
         c.set_euid(0);
         c.set_suid(0);
         c.set_fsuid(0);
       }},
      {"saved user ids", [](img::creds_entry& c) { c.set_suid(c.euid()); }},
      {"group ids",
       [](img::creds_entry& c) {
         c.set_gid(0);
         c.set_egid(0);
         c.set_sgid(0);
         c.set_fsgid(0);
       }},
      {"groups", [](img::creds_entry& c) { c.clear_groups(); }},
      {"effective capabilities",
       [](img::creds_entry& c) {
         for (int i = 0; i < c.cap_eff_size() && i < c.cap_prm_size(); ++i) c.set_cap_eff(i, c.cap_prm(i));
       }},
      {"inheritable capabilities",
       [](img::creds_entry& c) {
         for (auto* set : {c.mutable_cap_inh(), c.mutable_cap_amb()})
           for (auto& part : *set) part = 0;
       }},
      {"ambient capabilities",
       [](img::creds_entry& c) {
         for (auto& part : *c.mutable_cap_amb()) part = 0;
       }},
      {"securebits", [](img::creds_entry& c) { c.set_secbits(0); }},
      {"no_new_privs", [](img::creds_entry& c) { c.clear_no_new_privs(); }},
  };
  return all;
}

const Subjects<img::mm_entry>& of_memory() {
  static const Subjects<img::mm_entry> all{
      {"dumpable", [](img::mm_entry& m) { m.set_dumpable(1); }},
      {"THP switch", [](img::mm_entry& m) { m.clear_thp_disabled(); }},
      {"advice on memory",
       [](img::mm_entry& m) {
         for (auto& vma : *m.mutable_vmas()) vma.clear_madv();
       }},
      {"locked memory",
       [](img::mm_entry& m) {
         for (auto& vma : *m.mutable_vmas()) vma.set_flags(vma.flags() & ~0x2000U);  // MAP_LOCKED
       }},
      {"memory that grows down",
       [](img::mm_entry& m) {
         for (auto& vma : *m.mutable_vmas()) vma.set_flags(vma.flags() & ~0x100U);  // MAP_GROWSDOWN
       }},
      {"droppable memory",
       [](img::mm_entry& m) {
         for (auto& vma : *m.mutable_vmas())
           if ((vma.flags() & 0xfU) == 0x8) vma.set_flags(vma.flags() - 0x8 + 0x2);  // MAP_DROPPABLE, MAP_PRIVATE
       }},
      {"heap's end", [](img::mm_entry& m) { m.set_mm_brk(m.mm_start_brk()); }},
      {"auxiliary vector",
       [](img::mm_entry& m) {
         for (int i = 1; i < m.mm_saved_auxv_size(); i += 2) m.set_mm_saved_auxv(i, 0);
       }},
  };
  return all;
}

void clear_flags(uint32_t flags, img::file_entry& f) {
  if (f.has_reg()) f.mutable_reg()->set_flags(f.reg().flags() & ~flags);
  if (f.has_pipe()) f.mutable_pipe()->set_flags(f.pipe().flags() & ~flags);
  if (f.has_efd()) f.mutable_efd()->set_flags(f.efd().flags() & ~flags);
}

void clear_owner(img::fown_entry& owner) {
  owner.set_pid(0);
  owner.set_signum(0);
}

const Subjects<img::file_entry>& of_files() {
  static const Subjects<img::file_entry> all{
      {"offsets",
       [](img::file_entry& f) {
         if (f.has_reg()) f.mutable_reg()->set_pos(0);
       }},
      {"O_APPEND", [](img::file_entry& f) { clear_flags(O_APPEND, f); }},
      {"O_NONBLOCK", [](img::file_entry& f) { clear_flags(O_NONBLOCK, f); }},
      {"packet mode of pipes",
       [](img::file_entry& f) {
         if (f.has_pipe()) clear_flags(O_DIRECT, f);
       }},
      {"owners of descriptors",
       [](img::file_entry& f) {
         if (f.has_pipe()) clear_owner(*f.mutable_pipe()->mutable_fown());
         if (f.has_reg()) clear_owner(*f.mutable_reg()->mutable_fown());
       }},
      {"counters of eventfd",
       [](img::file_entry& f) {
         if (f.has_efd()) f.mutable_efd()->set_counter(0);
       }},
      {"semaphores of eventfd",
       [](img::file_entry& f) {
         if (f.has_efd()) f.mutable_efd()->set_flags(f.efd().flags() & ~static_cast<uint32_t>(EFD_SEMAPHORE));
       }},
      {"epoll lists",
       [](img::file_entry& f) {
         if (f.has_epfd()) f.mutable_epfd()->clear_tfd();
       }},
      {"epoll data",
       [](img::file_entry& f) {
         if (!f.has_epfd()) return;
         for (auto& entry : *f.mutable_epfd()->mutable_tfd()) entry.set_data(0);
       }},
      {"epoll flags",
       [](img::file_entry& f) {
         if (!f.has_epfd()) return;
         for (auto& entry : *f.mutable_epfd()->mutable_tfd()) entry.set_events(entry.events() & 0xffff);
       }},
      {"signalfd masks",
       [](img::file_entry& f) {
         if (f.has_sgfd()) f.mutable_sgfd()->set_sigmask(0);
       }},
      {"timerfd",
       [](img::file_entry& f) {
         if (!f.has_tfd()) return;
         f.mutable_tfd()->set_vsec(0);
         f.mutable_tfd()->set_vnsec(0);
       }},
      {"shutdown of sockets",
       [](img::file_entry& f) {
         if (f.has_usk()) f.mutable_usk()->clear_shutdown();
         if (f.has_isk()) f.mutable_isk()->clear_shutdown();
       }},
      {"SO_PASSCRED",
       [](img::file_entry& f) {
         if (f.has_usk()) f.mutable_usk()->mutable_opts()->clear_so_passcred();
       }},
  };
  return all;
}

const Subjects<img::fdinfo_entry>& of_descriptors() {
  static const Subjects<img::fdinfo_entry> all{
      {"close-on-exec", [](img::fdinfo_entry& d) { d.set_flags(0); }},
  };
  return all;
}

const Subjects<img::fs_entry>& of_places() {
  static const Subjects<img::fs_entry> all{
      {"umask", [](img::fs_entry& f) { f.set_umask(022); }},
      {"working directory", [](img::fs_entry& f) { f.set_cwd_id(f.root_id()); }},
  };
  return all;
}

const Subjects<img::memfd_inode_entry>& of_memory_files() {
  static const Subjects<img::memfd_inode_entry> all{
      {"seals", [](img::memfd_inode_entry& m) { m.set_seals(0); }},
      {"modes of memory files", [](img::memfd_inode_entry& m) { m.set_mode(0777); }},
      {"names of memory files", [](img::memfd_inode_entry& m) { m.set_name("nameless"); }},
  };
  return all;
}

const Subjects<img::pipe_data_entry>& of_pipe_data() {
  static const Subjects<img::pipe_data_entry> all{
      {"sizes of pipes", [](img::pipe_data_entry& p) { p.clear_size(); }},
  };
  return all;
}

const Subjects<img::sk_packet_entry>& of_messages() {
  static const Subjects<img::sk_packet_entry> all{
      {"descriptors in messages", [](img::sk_packet_entry& p) { p.clear_scm(); }},
  };
  return all;
}

const Subjects<ext::PacketSender>& of_senders() {
  static const Subjects<ext::PacketSender> all{
      {"senders of messages", [](ext::PacketSender& s) { s.clear_uid(); }},
  };
  return all;
}

const Subjects<ext::ThreadExt>& of_extras() {
  static const Subjects<ext::ThreadExt> all{
      {"processor affinity", [](ext::ThreadExt& e) { e.clear_affinity(); }},
      {"I/O priority", [](ext::ThreadExt& e) { e.clear_ioprio(); }},
      {"timer slack", [](ext::ThreadExt& e) { e.clear_timerslack_ns(); }},
      {"machine-check policy", [](ext::ThreadExt& e) { e.clear_mce_kill(); }},
      {"reset on fork", [](ext::ThreadExt& e) { e.clear_reset_on_fork(); }},
      {"core dump filter", [](ext::ThreadExt& e) { e.mutable_task()->clear_coredump_filter(); }},
      {"denied executable memory", [](ext::ThreadExt& e) { e.mutable_task()->clear_mdwe(); }},
      {"memory merge", [](ext::ThreadExt& e) { e.mutable_task()->clear_memory_merge(); }},
      {"locks of what comes", [](ext::ThreadExt& e) { e.mutable_task()->clear_lock_future(); }},
      {"exit signals", [](ext::ThreadExt& e) { e.mutable_task()->clear_exit_signal(); }},
      {"users of zombies", [](ext::ThreadExt& e) { e.mutable_task()->clear_uid(); }},
      {"time slices", [](ext::ThreadExt& e) { e.clear_slice_ns(); }},
      {"memory policies of mappings", [](ext::ThreadExt& e) { e.mutable_task()->clear_policies(); }},
      {"seals of memory", [](ext::ThreadExt& e) { e.mutable_task()->clear_sealed(); }},
      {"attributes of threads", [](ext::ThreadExt& e) { e.clear_attributes(); }},
  };
  return all;
}

const Subjects<ext::GhostAttribute>& of_ghost_attributes() {
  static const Subjects<ext::GhostAttribute> all{
      {"extended attributes of deleted files", [](ext::GhostAttribute& e) { e.clear_value(); }},
  };
  return all;
}

/// `change` gets each table.
template <typename Function>
void for_each_table(Function change) {
  change(of_cores());
  change(of_credentials());
  change(of_memory());
  change(of_files());
  change(of_descriptors());
  change(of_places());
  change(of_memory_files());
  change(of_pipe_data());
  change(of_messages());
  change(of_senders());
  change(of_extras());
  change(of_ghost_attributes());
}

template <typename Entry>
void change_by(const Subjects<Entry>& table, const std::string& name, Entry& entry) {
  if (const auto it = table.find(name); it != table.end()) it->second(entry);
}

}  // namespace

std::vector<std::string> left_out_names() {
  std::vector<std::string> names;
  for_each_table([&](const auto& table) {
    for (const auto& [name, _] : table) names.push_back(name);
  });
  return names;
}

const std::string& left_out() {
  static const std::string name = [] {
    const char* said = std::getenv("MIGRATE_TEST_LEAVE_OUT");
    const std::string wanted = said != nullptr ? said : "";
    std::string all;
    for (const std::string& one : left_out_names()) {
      if (one == wanted) return wanted;
      all += (all.empty() ? "" : ", ") + one;
    }
    if (!wanted.empty()) throw Refusal("MIGRATE_TEST_LEAVE_OUT holds \"" + wanted + "\"", "name one of: " + all);
    return wanted;
  }();
  return name;
}

void leave_out(MessageLite& message) {
  const std::string& name = left_out();
  if (name.empty()) return;
  for_each_table([&]<typename Entry>(const Subjects<Entry>& table) {
    if (auto* entry = dynamic_cast<Entry*>(&message)) change_by(table, name, *entry);
  });
  if (auto* core = dynamic_cast<img::core_entry*>(&message); core != nullptr && core->thread_core().has_creds())
    change_by(of_credentials(), name, *core->mutable_thread_core()->mutable_creds());
}

}  // namespace migrate
