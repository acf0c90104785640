#include "core/ipc/undo_lists.h"

#include <bpf/bpf.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <map>
#include <utility>

#include "core/base/bpf_iterator.h"
#include "core/base/error.h"
#include "core/base/fd.h"

namespace migrate {
namespace {

/// What the program writes for each undo structure of each thread.
struct Record {
  uint32_t tgid, tid;
  int32_t set;
  int32_t failed;
  uint64_t address;  ///< of the structure, to be compared
  std::array<int16_t, kMostUndone> adjustments;
};
/// Of one process: its records must fit into the kernel's buffer (32 KiB), or nobody's can be read.
constexpr int kMostSets = 100;
static_assert((kMostSets + 1) * sizeof(Record) <= (32 << 10));
constexpr int kTooManySets = 1;  ///< Record::failed of a last one, which is no more than that; errors are negative

struct Places {
  int target, task, meta, seq, tgid, tid, undo_list, sysvsem, head, link, set, adjustments;
  bool by_pointer;
  bool known() const {
    for (const int place : {target, task, meta, seq, tgid, tid, undo_list, sysvsem, head, link, set, adjustments})
      if (place < 0) return false;
    return true;
  }
};

std::optional<Places> find_places() {
  const KernelTypes kernel;
  if (!kernel) return std::nullopt;
  const Places p{.target = kernel.function("bpf_iter_task"),
                 .task = kernel.at("bpf_iter__task", "task"),
                 .meta = kernel.at("bpf_iter__task", "meta"),
                 .seq = kernel.at("bpf_iter_meta", "seq"),
                 .tgid = kernel.at("task_struct", "tgid"),
                 .tid = kernel.at("task_struct", "pid"),
                 .undo_list = kernel.at("sysv_sem", "undo_list"),
                 .sysvsem = kernel.at("task_struct", "sysvsem"),
                 .head = kernel.at("sem_undo_list", "list_proc"),
                 .link = kernel.at("sem_undo", "list_proc"),
                 .set = kernel.at("sem_undo", "semid"),
                 .adjustments = kernel.at("sem_undo", "semadj"),
                 .by_pointer = kernel.is_pointer("sem_undo", "semadj")};
  if (!p.known()) return std::nullopt;
  return p;
}

/// A program that is put together instruction by instruction.
class Assembler {
 public:
  void load(uint8_t size, uint8_t to, uint8_t from, int offset) {
    add({static_cast<uint8_t>(BPF_LDX | BPF_MEM | size), to, from, static_cast<int16_t>(offset), 0});
  }
  void store(uint8_t size, int offset, uint8_t from) {
    add({static_cast<uint8_t>(BPF_STX | BPF_MEM | size), BPF_REG_10, from, static_cast<int16_t>(offset), 0});
  }
  void set(uint8_t to, int value) { add({BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value}); }
  /// to = from + value
  void sum(uint8_t to, uint8_t from, int value) {
    add({BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0});
    add({BPF_ALU64 | BPF_ADD | BPF_K, to, 0, 0, value});
  }
  void call(int helper) { add({BPF_JMP | BPF_CALL, 0, 0, 0, helper}); }
  /// Reads kernel memory at r3 onto the stack.
  void read(int to, int bytes) {
    sum(BPF_REG_1, BPF_REG_10, to);
    set(BPF_REG_2, bytes);
    call(BPF_FUNC_probe_read_kernel);
  }
  void leave_if(uint8_t reg, int value) { leave({BPF_JMP | BPF_JEQ | BPF_K, reg, 0, 0, value}); }
  void leave_if_same(uint8_t a, uint8_t b) { leave({BPF_JMP | BPF_JEQ | BPF_X, a, b, 0, 0}); }
  size_t here() const { return code_.size(); }
  void jump_unless_zero(uint8_t reg, size_t to) {
    const auto distance = static_cast<int>(to) - static_cast<int>(here()) - 1;
    add({BPF_JMP | BPF_JNE | BPF_K, reg, 0, static_cast<int16_t>(distance), 0});
  }
  std::vector<bpf_insn> finish() {
    for (const size_t from : leaving_) code_[from].off = static_cast<int16_t>(here() - from - 1);
    set(BPF_REG_0, 0);
    add({BPF_JMP | BPF_EXIT, 0, 0, 0, 0});
    return code_;
  }

 private:
  void add(bpf_insn i) { code_.push_back(i); }
  void leave(bpf_insn i) {
    leaving_.push_back(here());
    add(i);
  }
  std::vector<bpf_insn> code_;
  std::vector<size_t> leaving_;
};

/// for (un = task->sysvsem.undo_list's first; un is not its head; un = next) write {task, un->semid, un->semadj}
/// After kMostSets of them: if (un is not its head) write {task, failed = kTooManySets}
std::vector<bpf_insn> program(const Places& p) {
  constexpr int kWord = -8, kUndo = -16;
  constexpr int kRecord = kUndo - static_cast<int>(sizeof(Record));
  static_assert(kRecord >= -512);
  Assembler a;
  a.sum(BPF_REG_6, BPF_REG_1, 0);
  a.load(BPF_DW, BPF_REG_7, BPF_REG_6, p.task);
  a.leave_if(BPF_REG_7, 0);
  a.load(BPF_W, BPF_REG_2, BPF_REG_7, p.tgid);
  a.store(BPF_W, kRecord, BPF_REG_2);
  a.load(BPF_W, BPF_REG_2, BPF_REG_7, p.tid);
  a.store(BPF_W, kRecord + static_cast<int>(offsetof(Record, tid)), BPF_REG_2);
  a.sum(BPF_REG_3, BPF_REG_7, p.sysvsem + p.undo_list);
  a.read(kWord, 8);
  a.load(BPF_DW, BPF_REG_8, BPF_REG_10, kWord);
  a.leave_if(BPF_REG_8, 0);
  a.sum(BPF_REG_8, BPF_REG_8, p.head);
  a.sum(BPF_REG_3, BPF_REG_8, 0);
  a.read(kWord, 8);
  a.set(BPF_REG_9, kMostSets);
  const size_t loop = a.here();
  a.load(BPF_DW, BPF_REG_3, BPF_REG_10, kWord);
  a.leave_if(BPF_REG_3, 0);
  a.leave_if_same(BPF_REG_3, BPF_REG_8);
  a.sum(BPF_REG_3, BPF_REG_3, -p.link);
  a.store(BPF_DW, kUndo, BPF_REG_3);
  a.store(BPF_DW, kRecord + static_cast<int>(offsetof(Record, address)), BPF_REG_3);
  a.sum(BPF_REG_3, BPF_REG_3, p.set);
  a.read(kRecord + static_cast<int>(offsetof(Record, set)), 4);
  a.load(BPF_DW, BPF_REG_3, BPF_REG_10, kUndo);
  a.sum(BPF_REG_3, BPF_REG_3, p.adjustments);
  if (p.by_pointer) {
    a.read(kWord, 8);
    a.load(BPF_DW, BPF_REG_3, BPF_REG_10, kWord);
  }
  a.read(kRecord + static_cast<int>(offsetof(Record, adjustments)), sizeof(Record::adjustments));
  a.store(BPF_W, kRecord + static_cast<int>(offsetof(Record, failed)), BPF_REG_0);
  const auto write_record = [&] {
    a.load(BPF_DW, BPF_REG_1, BPF_REG_6, p.meta);
    a.load(BPF_DW, BPF_REG_1, BPF_REG_1, p.seq);
    a.sum(BPF_REG_2, BPF_REG_10, kRecord);
    a.set(BPF_REG_3, sizeof(Record));
    a.call(BPF_FUNC_seq_write);
  };
  write_record();
  a.load(BPF_DW, BPF_REG_3, BPF_REG_10, kUndo);
  a.sum(BPF_REG_3, BPF_REG_3, p.link);
  a.read(kWord, 8);
  a.sum(BPF_REG_9, BPF_REG_9, -1);
  a.jump_unless_zero(BPF_REG_9, loop);
  a.load(BPF_DW, BPF_REG_3, BPF_REG_10, kWord);
  a.leave_if(BPF_REG_3, 0);
  a.leave_if_same(BPF_REG_3, BPF_REG_8);
  a.set(BPF_REG_0, kTooManySets);
  a.store(BPF_W, kRecord + static_cast<int>(offsetof(Record, failed)), BPF_REG_0);
  write_record();
  return a.finish();
}

}  // namespace

std::optional<UndoReader> UndoReader::open() {
  const std::optional<Places> places = find_places();
  if (!places) return std::nullopt;
  std::optional<Fd> loaded = bpf::load_iterator("migrate_undos", places->target, program(*places));
  if (!loaded) return std::nullopt;
  return UndoReader(std::move(*loaded));
}

std::vector<UndoList> UndoReader::read(const std::set<pid_t>& pids) const {
  bpf_link_create_opts options{};
  options.sz = sizeof options;
  const Fd link(check(::bpf_link_create(program_.get(), 0, BPF_TRACE_ITER, &options), "attach", "the task iterator"));
  const Fd iterator(check(::bpf_iter_create(link.get()), "start", "the task iterator"));
  std::map<std::pair<pid_t, int>, UndoList> lists;  // threads share theirs
  std::map<std::pair<pid_t, int>, uint64_t> addresses;
  for (Record record{}; read_full(iterator.get(), std::as_writable_bytes(std::span(&record, 1)), "the task iterator") ==
                        sizeof record;) {
    if (!pids.contains(static_cast<pid_t>(record.tgid))) continue;
    if (record.failed == kTooManySets)
      throw Refusal("process " + std::to_string(record.tgid) + " has used SEM_UNDO with more than " +
                        std::to_string(kMostSets) + " semaphore sets, which is too many to be read",
                    "run the program without SEM_UNDO");
    if (record.set < 0) continue;  // it was removed
    if (record.failed != 0) throw Error("read the undo list of process", std::to_string(record.tgid), EFAULT);
    const auto pid = static_cast<pid_t>(record.tgid);
    if (addresses.try_emplace({pid, record.set}, record.address).first->second != record.address)
      throw Refusal("threads of process " + std::to_string(pid) + " have undo lists of their own for semaphores",
                    "run the program without unsharing them");
    lists[{pid, record.set}] = {pid, record.set, {record.adjustments.begin(), record.adjustments.end()}};
  }
  std::vector<UndoList> all;
  for (auto& [key, list] : lists) all.push_back(std::move(list));
  return all;
}

bool may_have_undos(pid_t pid) {
  // A child of fork(2) has no list; it is compared with the process's.
  const pid_t child = check(::fork(), "fork", "a process to compare with");
  if (child == 0) {
    for (;;) ::pause();
  }
  const long same = ::syscall(SYS_kcmp, child, pid, KCMP_SYSVSEM, 0, 0);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  return same != 0;
}

}  // namespace migrate
