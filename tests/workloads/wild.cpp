// A tree that forks, executes, maps, opens and starts threads at random, all the time, and checks itself.
//     wild DIR [SEED] [MS: mean time between two steps of a member]
// What is wrong stands in DIR/failures; then the tree ends.
#include <spawn.h>

#include <csignal>
#include <filesystem>
#include <memory>

#include "wild_family.h"

using namespace wild;

namespace {

/// What all members know, also after an execve(2).
struct Setting {
  std::string program, dir;
  long pace = 10;
  int board_fd = -1;
  Board* board = nullptr;

  void map_board() {
    void* at = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, board_fd, 0);
    expect(at != MAP_FAILED, "mmap of the board");
    board = static_cast<Board*>(at);
  }

  [[noreturn]] void fail(const std::string& what) const {
    const std::string line = std::to_string(getpid()) + ": " + what + "\n";
    const int fd = open((dir + "/failures").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd != -1 && write(fd, line.data(), line.size()) == -1) std::perror("failures");
    board->failed = 1;
    _exit(1);
  }
};

class Member {
 public:
  Member(Setting& setting, uint64_t seed) : s_(setting), random_{seed}, memory_(random_, setting.dir + "/pages") {}

  /// Goes on after an execve(2) with what `w` says.
  Member(Setting& setting, const uint64_t* w) : Member(setting, w[0]) {
    depth_ = w[1];
    steps_left_ = w[2];
    slot_ = w[3];
    parent_ = static_cast<pid_t>(w[4]);
    const uint64_t channels = w[5], children = w[6];
    w += 7;
    up_ = Link::taken_over(w);
    for (uint64_t i = 0; i < channels; ++i) objects_.push_back(std::make_unique<Channel>(w));
    for (uint64_t i = 0; i < children; ++i) {
      const auto pid = static_cast<pid_t>(w[0]);
      const bool lives = w[1] != 0;
      w += 2;
      children_.push_back({pid, lives, lives ? Link::taken_over(w) : Link()});
    }
  }

  void step() {
    if (s_.board->failed) _exit(1);
    switch (random_.below(12)) {
      case 0:
        return random_.chance(40) ? fork_short() : reap();
      case 1:
        return random_.chance(20) ? fork_long() : reap();
      case 2:
        return threads();
      case 3:
        return random_.chance(15) && depth_ > 0 ? execute() : verify();
      case 4:
      case 5:
      case 6:
        return objects();
      default:
        return memory_.step();
    }
  }

  void verify() const {
    memory_.verify_all();
    for (const auto& o : objects_) o->verify();
    for (const auto& t : threads_) t->verify();
  }

  void turn() {
    step();
    for (Child& c : children_)
      if (c.lives) c.link.parent_turn(random_);
    ++s_.board->slots[slot_].turns;
  }

  void rest() { wild::rest(random_, static_cast<int64_t>(random_.below(static_cast<size_t>(2 * s_.pace) + 1))); }

  /// The life of a member that is not the root.
  [[noreturn]] void live() {
    try {
      s_.board->slots[slot_].pid = getpid();
      while (steps_left_-- > 0 && up_.child_turn()) {
        if (getppid() != parent_) _exit(6);
        turn();
        rest();
      }
      verify();
      end_children();
    } catch (const std::exception& e) {
      s_.fail(e.what());
    }
    s_.board->slots[slot_].pid = 0;
    _exit(well);
  }

 private:
  void objects() {
    if (objects_.empty() || (objects_.size() < 16 && random_.chance(20))) {
      switch (random_.below(5)) {
        case 0:
          objects_.push_back(std::make_unique<Counter>());
          break;
        case 1:
          objects_.push_back(std::make_unique<File>(random_, s_.dir + "/file-" + std::to_string(random_.next())));
          break;
        case 2:
          objects_.push_back(std::make_unique<Memfd>(random_));
          break;
        default:
          objects_.push_back(std::make_unique<Channel>(random_));
          break;
      }
      return;
    }
    const size_t i = random_.below(objects_.size());
    objects_[i]->use(random_);
    if (!random_.chance(8)) return;
    objects_[i]->verify();
    objects_.erase(objects_.begin() + static_cast<std::ptrdiff_t>(i));
  }

  void threads() {
    if (threads_.size() < 4 && random_.chance(60))
      threads_.push_back(std::make_unique<Counting>(random_.next()));
    else if (!threads_.empty()) {
      threads_.front()->verify();
      threads_.pop_front();
    }
  }

  /// A child that looks at what it inherited and ends; it stays a zombie until somebody reaps it.
  void fork_short() {
    if (children_.size() > 8) return reap();
    if (random_.chance(25)) return spawn();
    Area* area = random_.chance(40) ? memory_.any_shared() : nullptr;
    const auto version = static_cast<uint32_t>(1'000'000 + random_.below(1'000'000));
    const pid_t pid = must(fork(), "fork");
    if (pid == 0) {
      try {
        if (area) Memory::write_version(*area, 0, version);
        memory_.forget_shared();  // the parent goes on with it
        memory_.verify_all();
      } catch (const std::exception& e) {
        s_.fail(std::string("in a child: ") + e.what());
      }
      _exit(well);
    }
    children_.push_back({pid, false, Link()});
    if (!area) return;
    area->versions[0] = version;
    wait_for(children_.back(), 0);
    children_.pop_back();
  }

  /// vfork(2) and execve(2).
  void spawn() {
    char exits[] = "--exit";
    char* const arguments[] = {s_.program.data(), s_.dir.data(), exits, nullptr};
    pid_t pid = 0;
    expect(posix_spawn(&pid, s_.program.c_str(), nullptr, nullptr, arguments, environ) == 0, "posix_spawn");
    children_.push_back({pid, false, Link()});
  }

  /// A child that becomes a member.
  void fork_long() {
    if (depth_ >= 3 || children_.size() > 6) return;
    const int slot = s_.board->take();
    if (slot == -1) return;
    auto [here, there] = Link::pair();
    const pid_t mine = getpid();
    const pid_t pid = must(fork(), "fork");
    if (pid == 0) {
      here = Link();
      become(mine, static_cast<size_t>(slot), std::move(there));
      live();
    }
    children_.push_back({pid, true, std::move(here)});
  }

  void become(pid_t parent, size_t slot, Link&& up) {
    // After a move the same numbers are given to new children: neither they nor the parent's state alone will do.
    random_.state = random_.next() ^ static_cast<uint64_t>(workload::now_ns());
    parent_ = parent;
    slot_ = slot;
    up_ = std::move(up);
    ++depth_;
    steps_left_ = 50 + random_.below(600);
    objects_.clear();
    children_.clear();
    // They do not exist here.
    for (auto& t : threads_) static_cast<void>(t.release());
    threads_.clear();
    memory_.forget_shared();
  }

  /// Goes on as a new program, perhaps called by a thread that is not the first.
  void execute() {
    memory_.verify_all();
    Words words{random_.next(), depth_, steps_left_, slot_, static_cast<uint64_t>(parent_), 0, children_.size()};
    up_.hand_over(words);
    std::erase_if(objects_, [&](const auto& o) { return !o->hand_over(words); });
    words[5] = objects_.size();
    for (Child& c : children_) {
      words.insert(words.end(), {static_cast<uint64_t>(c.pid), c.lives});
      if (c.lives) c.link.hand_over(words);
    }
    const int fd = must(memfd_create("wild-state", 0), "memfd_create");
    const size_t length = words.size() * 8;
    expect(pwrite(fd, words.data(), length, 0) == static_cast<ssize_t>(length), "write of the state");
    std::string parts[] = {
        s_.program, s_.dir, "--continue", std::to_string(fd), std::to_string(s_.board_fd), std::to_string(s_.pace)};
    std::vector<char*> arguments;
    for (auto& p : parts) arguments.push_back(p.data());
    arguments.push_back(nullptr);
    auto call = [&] {
      execve(s_.program.c_str(), arguments.data(), environ);
      s_.fail(std::string("execve: ") + std::strerror(errno));
    };
    if (random_.chance(50)) call();
    std::thread(call).join();
  }

  bool wait_for(const Child& c, int options) {
    int status = 0;
    const pid_t got = must(waitpid(c.pid, &status, options), "waitpid");
    if (got == 0) return false;
    expect(WIFEXITED(status) && WEXITSTATUS(status) == well,
           "child " + std::to_string(c.pid) + " ended with status " + std::to_string(status));
    return true;
  }

  void reap() {
    if (!children_.empty() && random_.chance(50)) {
      const auto c = children_.begin() + static_cast<std::ptrdiff_t>(random_.below(children_.size()));
      if (wait_for(*c, WNOHANG)) children_.erase(c);
    }
  }

  void end_children() {
    for (Child& c : children_) {
      c.link = Link();
      wait_for(c, 0);
    }
    children_.clear();
  }

  Setting& s_;
  Random random_;
  Memory memory_;
  std::vector<std::unique_ptr<Object>> objects_;
  std::deque<std::unique_ptr<Counting>> threads_;
  std::vector<Child> children_;
  Link up_;
  uint64_t depth_ = 0, steps_left_ = 0;
  size_t slot_ = 0;
  pid_t parent_ = 0;
};

/// All members are alive and get on.
void verify_tree(const Setting& s) {
  expect(s.board->failed == 0, "a member failed: see the file 'failures'");
  for (const Slot& slot : s.board->slots) {
    const int pid = slot.pid;
    const uint64_t turns = slot.turns;
    if (pid <= 0) continue;
    if (pid == getpid()) continue;
    workload::await([&] { return slot.turns != turns || slot.pid != pid || s.board->failed; },
                    "member " + std::to_string(pid) + " to get on");
  }
  expect(s.board->failed == 0, "a member failed: see the file 'failures'");
}

void begin(Setting& s, int argc, char** argv) {
  workload::Workload w(argc, argv, 4 * 3600);
  s.board_fd = must(memfd_create("wild-board", 0), "memfd_create");
  must(ftruncate(s.board_fd, sizeof(Board)), "ftruncate");
  s.map_board();
  s.pace = w.number(1, 10);
  s.board->slots[0].pid = getpid();
  Memory::make_file(s.dir + "/pages");
  Member root(s, static_cast<uint64_t>(w.number(0, 1)));
  try {
    w.serve(
        [&] {
          root.verify();
          verify_tree(s);
        },
        [&] {
          root.turn();
          root.rest();
        });
  } catch (const std::exception& e) {
    s.fail(e.what());
  }
}

[[noreturn]] void go_on(Setting& s, char** argv) {
  const int fd = std::atoi(argv[3]);
  s.board_fd = std::atoi(argv[4]);
  s.pace = std::atol(argv[5]);
  s.map_board();
  struct stat status {};
  must(fstat(fd, &status), "fstat of the state");
  Words words(static_cast<size_t>(status.st_size) / 8);
  expect(pread(fd, words.data(), words.size() * 8, 0) == status.st_size, "read of the state");
  close(fd);
  Member(s, words.data()).live();
}

}  // namespace

int main(int argc, char** argv) {
  return workload::run(
      [&] {
        Setting s;
        s.program = std::filesystem::read_symlink("/proc/self/exe");
        s.dir = argc > 1 ? argv[1] : "";
        if (argc > 2 && std::strcmp(argv[2], "--exit") == 0) _exit(well);
        if (argc > 5 && std::strcmp(argv[2], "--continue") == 0) go_on(s, argv);
        begin(s, argc, argv);
      },
      argv[0]);
}
