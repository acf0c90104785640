// Trees that are a few numbers on a board in shared memory, so that guardians in processes of their own, killed at any
// point, leave behind what can be checked.
#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <new>

#include "migrate/session/guardian/guardian.h"

namespace migrate {

/// A copy of the program: at the source or at the destination.
struct FakeCopy {
  std::atomic<bool> exists{false};
  std::atomic<bool> running{false};
  std::atomic<bool> ever_ran{false};
  std::atomic<bool> in_our_cgroup{false};
  std::atomic<bool> made{false};  ///< it existed once
};

struct Board {
  FakeCopy source, destination;
  std::atomic<bool> stop_fails{false}, finish_fails{false}, disk_full_after_hold{false};
  std::atomic<size_t> stop_marks{0};
  std::atomic<int> thaws_that_fail{0};
  std::atomic<uint64_t> lock_device{0};  ///< not 0: of a file on which the program has a lock
  std::atomic<bool> without_lock{false};
  std::atomic<bool> lock_is_anothers{false};  ///< when it is taken again
  std::atomic<bool> two_have_lock{false};     ///< taken again while the copy was there

  void give_up_lock() { without_lock = true; }
  std::vector<std::string> take_lock() {
    if (!without_lock.exchange(false)) return {};
    if (destination.exists) two_have_lock = true;
    return lock_is_anothers ? std::vector<std::string>{"the fake runs on without its lock"}
                            : std::vector<std::string>();
  }
  void thaw_source() {
    if (thaws_that_fail > 0) {
      --thaws_that_fail;
      throw Error("thaw", "the fake", EIO);
    }
    source.running = true;
    source.in_our_cgroup = false;
  }
};

class SharedBoard {
 public:
  SharedBoard()
      : board_(new (::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Board) {
    board_->source.exists = board_->source.running = true;
  }
  ~SharedBoard() { ::munmap(board_, sizeof(Board)); }
  SharedBoard(const SharedBoard&) = delete;
  SharedBoard& operator=(const SharedBoard&) = delete;
  Board* operator->() const { return board_; }
  Board& operator*() const { return *board_; }

 private:
  Board* board_;
};

class FakeHeldTree final : public HeldTree {
 public:
  FakeHeldTree(Board& board, std::string state_dir) : board_(board), state_dir_(std::move(state_dir)) {
    images_.adopt("inventory.img", {std::byte{7}});
    PageSource source;
    source.memory = {MemoryId::Kind::task, 1};
    source.runs = {{0x1000, 2}};
    source.fd = memory_file(std::vector<std::byte>(0x3000), "fake");
    memories_.push_back(std::move(source));
  }
  void stop() override {
    if (board_.stop_fails) throw Refusal("the fake cannot be stopped", "let it be");
  }
  std::vector<HeldLock> locks() const override {
    if (board_.lock_device == 0) return {};
    return {{.number = 3,
             .pid = Pid(::getppid()),
             .fd = 5,
             .lock = {.kind = kLockPosix, .type = F_WRLCK, .start = 7, .length = 8},
             .device = board_.lock_device,
             .inode = 99,
             .path = "/a \"file\""}};
  }
  void give_up_locks(const std::vector<HeldLock>&) override { board_.give_up_lock(); }
  FreezerCgroup::Record hold(const std::string& name) override {
    board_.source.in_our_cgroup = true;
    board_.source.running = false;
    if (board_.disk_full_after_hold) {
      for (const auto& file : std::filesystem::directory_iterator(state_dir_)) {
        if (file.path().extension() == ".journal") std::filesystem::create_directory(file.path().string() + ".new");
      }
    }
    return {true, {"/fake/" + name}, {}};
  }
  std::vector<std::string> run_on() override {
    board_.thaw_source();
    return board_.take_lock();
  }
  std::vector<TaskId> tasks() const override { return {*TaskId::of(::getppid())}; }
  const ImageSet& images() const override { return images_; }
  std::vector<PageSource>& memories() override { return memories_; }
  const PagesByMemory& lazy_pages() const override { return lazy_; }
  int64_t stopping_since_ns() const override { return 1; }

 private:
  Board& board_;
  std::string state_dir_;
  ImageSet images_;
  std::vector<PageSource> memories_;
  PagesByMemory lazy_;
};

class FakeRestoredTree final : public RestoredTree {
 public:
  explicit FakeRestoredTree(Board& board) : board_(board) {}
  ~FakeRestoredTree() override {
    if (!opened_) discard();
  }
  FreezerCgroup::Record make_gate(const std::string& name) override {
    board_.destination.in_our_cgroup = true;
    return {true, {"/fake/" + name}, {}};
  }
  Room warm(const TreeLayout&) override { return make_room(); }
  void discard_pages(std::span<const PageDiscard>) override {}
  void reserve_pages(std::span<const PageReserve>) override {}
  Room prepare(const ImageSet& images) override {
    if (!images.has("inventory.img")) throw Corrupt("images", "no inventory");
    return make_room();
  }
  uint64_t memory_bytes() override { return board_.destination.exists ? 3 << 20 : 0; }
  Room make_room() {
    board_.destination.exists = board_.destination.made = true;
    FillTarget target;
    target.memory = {MemoryId::Kind::task, 1};
    target.ranges = {{0x1000, 0x2000, 0x1000, false}};
    target.mem = memory_file({}, "fake");
    Room room;
    room.targets.push_back(std::move(target));
    return room;
  }
  void finish(const PagesByMemory&) override {
    if (board_.finish_fails) throw Error("finish the fake", "tree", ENOMEM);
  }
  void open_gate() override {
    opened_ = true;
    board_.destination.running = board_.destination.ever_ran = true;
  }
  void discard() override {
    board_.destination.exists = board_.destination.running = board_.destination.in_our_cgroup = false;
  }
  std::vector<TaskId> tasks() const override { return {TaskId{1, 1}}; }
  std::optional<TaskId> init() const override { return TaskId{2, 2}; }

 private:
  Board& board_;
  bool opened_ = false;
};

class FakeKeeper final : public TreeKeeper {
 public:
  explicit FakeKeeper(Board& board) : board_(board) {}
  bool lives(const JournalEntry& e) override {
    if (e.boot_id != boot_id()) return false;
    return e.role == Role::source ? board_.source.exists.load() : board_.destination.exists.load();
  }
  std::vector<std::string> run_on(const JournalEntry& e) override {
    if (e.boot_id != boot_id() || !board_.source.exists) return {};
    board_.thaw_source();
    return e.locks.empty() ? std::vector<std::string>() : board_.take_lock();
  }
  void kill(const JournalEntry&) override {
    board_.source.exists = board_.source.running = board_.source.in_our_cgroup = false;
  }
  void open_gate(const JournalEntry&) override {
    if (board_.destination.exists) board_.destination.running = board_.destination.ever_ran = true;
  }
  void discard(const JournalEntry&) override {
    board_.destination.exists = board_.destination.running = board_.destination.in_our_cgroup = false;
  }
  void leave_gate(const JournalEntry&) override { board_.destination.in_our_cgroup = false; }

 private:
  Board& board_;
};

inline GuardianParts fake_parts(Board& board, const std::string& state_dir) {
  GuardianParts parts;
  parts.held_tree = [&board, state_dir](const DumpOptions& options) {
    board.stop_marks = options.stops.size();
    return std::make_unique<FakeHeldTree>(board, state_dir);
  };
  parts.restored_tree = [&board](const RestoreOptions&) { return std::make_unique<FakeRestoredTree>(board); };
  parts.keeper = std::make_shared<FakeKeeper>(board);
  return parts;
}

/// A guardian in a forked process, with a fault.
inline Guardian::Spawn fork_guardian(Role role, Board& board, const std::string& state_dir, const std::string& fault) {
  return [role, &board, state_dir, fault](Fd end) {
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    ::setenv("MIGRATE_FAULT", fault.c_str(), 1);
    ::setenv("MIGRATE_FAULT_REACHED", (state_dir + "/reached").c_str(), 1);
    // As exec would: the agent's end must not stay open here.
    for (int fd = 3; fd < 256; ++fd) {
      if (fd != end.get()) ::close(fd);
    }
    LoggerPtr log = null_logger();
    const GuardianParts parts = fake_parts(board, state_dir);
    PacketSocket agent(Fd(end.release()));
    ::_exit(role == Role::source ? serve_source_guardian(std::move(agent), parts, *log)
                                 : serve_destination_guardian(std::move(agent), parts, *log));
  };
}

}  // namespace migrate
