// Warm fill: shells and their staging memory follow a tree that runs on, pages come over rounds, and what is restored
// in the end equals what was stopped.
#include <gtest/gtest.h>
#include <malloc.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <sstream>

#include "core/base/deadline.h"
#include "core/base/procfs.h"
#include "core/dump/dump.h"
#include "core/memory/vma.h"
#include "core/restore/restore.h"
#include "core/restore/staged_areas.h"
#include "core/restore/tree_order.h"

namespace migrate {
namespace {

constexpr uint64_t kAt = 0x10000000000, kBytes = 8 << 20, kSharedAt = 0x10100000000, kShared = 1 << 20;
constexpr uint64_t kReservedAt = 0x20000000000, kReserved = uint64_t{1} << 40;

std::byte* at(uint64_t address) { return reinterpret_cast<std::byte*>(address); }  // NOLINT: an address in the child

/// The program that moves: obeys bytes appended to one file, answers each by a byte in another.
class Program {
 public:
  Program(const std::string& folder)
      : commands_(::open((folder + "/commands").c_str(), O_RDONLY)),
        answers_(::open((folder + "/answers").c_str(), O_WRONLY | O_APPEND)) {}

  [[noreturn]] void run() {
    ::mmap(at(kAt), kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    ::mmap(at(kReservedAt), kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1,
           0);
    ::mmap(at(kSharedAt), kShared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    end_ = kAt + kBytes;
    touch(kAt, kBytes, 1);
    touch(kSharedAt, kShared, 2);
    answer('!');
    for (;;) {
      char c;
      if (::pread(commands_, &c, 1, done_) != 1) {
        ::usleep(500);
        continue;
      }
      ++done_;
      obey(c);
      answer(c);
    }
  }

 private:
  void answer(char c) {
    if (::write(answers_, &c, 1) != 1) ::_exit(1);
  }

  /// Words all over the range, other ones each time.
  static void touch(uint64_t start, uint64_t bytes, uint64_t seed) {
    for (uint64_t i = 0; i < bytes; i += kPageSize * (1 + (i / kPageSize + seed) % 3)) {
      const uint64_t word = seed * 1000003 + i * 2654435761u;
      std::memcpy(at(start + i + 8 * (i / kPageSize % 500)), &word, sizeof word);
    }
  }

  void obey(char c) {
    ++round_;
    switch (c) {
      case 'g':  // upwards and downwards, a heap, and a part of the reservation
        ::mmap(at(end_), 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        touch(end_, 1 << 20, round_);
        end_ += 1 << 20;
        std::memset(::sbrk(200 << 10), static_cast<int>(round_), 200 << 10);
        ::mprotect(at(kReservedAt + (uint64_t{round_} << 30)), 1 << 20, PROT_READ | PROT_WRITE);
        touch(kReservedAt + (uint64_t{round_} << 30), 1 << 20, round_);
        break;
      case 's':
        if (end_ <= kAt + (4 << 20)) break;
        ::munmap(at(end_ - (1 << 20)), 1 << 20);
        end_ -= 1 << 20;
        ::munmap(at(kAt + (3 << 20)), 64 << 10);  // a hole
        ::mprotect(at(kAt + (1 << 20)), 16 << 10, PROT_READ);
        break;
      case 'w':
        touch(kAt, 1 << 20, round_), touch(kSharedAt, 64 << 10, round_);
        break;
      case 'd':
        ::madvise(at(kAt + (2 << 20)), 256 << 10, MADV_DONTNEED);
        break;
      case 'f':
        fork_child();
        break;
      default:
        if (child_ > 0) change_child(c);
    }
  }

  void change_child(char c) {
    siginfo_t info{};
    switch (c) {
      case 'k':
        ::kill(child_, SIGKILL);
        ::waitpid(child_, nullptr, 0);
        child_ = 0;
        break;
      case 'z':  // and not waited for
        ::kill(child_, SIGKILL);
        ::waitid(P_PID, static_cast<id_t>(child_), &info, WEXITED | WNOWAIT);
        child_ = 0;
        break;
      case 'S':
        ::kill(child_, SIGUSR1);
        break;
      case 'G':
        ::setpgid(child_, child_);
        break;
      default:
        break;
    }
  }

  void fork_child() {
    ::signal(SIGUSR1, [](int) { ::setsid(); });
    child_ = ::fork();
    if (child_ != 0) return;
    touch(kAt + (5 << 18), 1 << 20, round_ + 77);
    for (;;) ::pause();
  }

  int commands_, answers_;
  off_t done_ = 0;
  uint64_t end_ = 0;
  unsigned round_ = 10;
  pid_t child_ = 0;
};

std::string proc(pid_t pid, const std::string& file) { return "/proc/" + std::to_string(pid) + "/" + file; }

struct Page {
  uint64_t address;
  std::vector<std::byte> data;
};

/// Layout and pages of a running tree, as a tracker would give them.
class Tree {
 public:
  explicit Tree(pid_t root) : root_(root) {}

  TreeLayout layout() const {
    TreeLayout all;
    add_task(root_, 0, all);
    return all;
  }

  static std::vector<TreeLayout::Area> areas(pid_t pid) {
    std::vector<TreeLayout::Area> areas;
    for (const Vma& v : parse_smaps(read_file_at(AT_FDCWD, proc(pid, "smaps")))) {
      if (v.shared || v.has_file() || v.name.starts_with("[v")) continue;
      TreeLayout::Area a{v.range.start.get(), v.range.end.get()};
      a.no_reserve = v.has(VmFlag::no_reserve);
      a.grows_down = v.has(VmFlag::grows_down);
      if (!areas.empty() && areas.back().end == a.start && areas.back().no_reserve == a.no_reserve &&
          areas.back().grows_down == a.grows_down) {
        areas.back().end = a.end;
      } else {
        areas.push_back(a);
      }
    }
    return areas;
  }

  /// Present pages.
  static std::vector<Page> pages(pid_t pid, const std::vector<TreeLayout::Area>& areas) {
    const Fd mem = open_path(proc(pid, "mem"), O_RDONLY), map = open_path(proc(pid, "pagemap"), O_RDONLY);
    std::vector<Page> pages;
    for (const TreeLayout::Area& a : areas) {
      if (a.end - a.start > uint64_t{1} << 35) {
        for (unsigned i = 10; i < 40; ++i) add_pages(map, mem, kReservedAt + (uint64_t{i} << 30), 1 << 20, pages);
      } else {
        add_pages(map, mem, a.start, a.end - a.start, pages);
      }
    }
    return pages;
  }

 private:
  static void add_pages(const Fd& map, const Fd& mem, uint64_t start, uint64_t bytes, std::vector<Page>& pages) {
    std::vector<uint64_t> entries(bytes / kPageSize);
    pread_full(map.get(), std::as_writable_bytes(std::span(entries)), start / kPageSize * 8, "pagemap");
    for (size_t i = 0; i < entries.size(); ++i) {
      if ((entries[i] >> 62) == 0) continue;
      Page page{start + i * kPageSize, std::vector<std::byte>(kPageSize)};
      pread_full(mem.get(), page.data, page.address, "memory");
      pages.push_back(std::move(page));
    }
  }

  static void add_task(pid_t pid, pid_t parent, TreeLayout& all) {
    const std::string stat = read_file_at(AT_FDCWD, proc(pid, "stat"));
    std::istringstream rest(stat.substr(stat.rfind(')') + 1));
    char state;
    TreeLayout::Task t;
    rest >> state >> t.ppid >> t.pgid >> t.sid;
    if (state == 'Z') return;
    t.pid = pid;
    t.ppid = parent;
    t.areas = areas(pid);
    all.tasks.push_back(t);
    std::istringstream children(read_file_at(AT_FDCWD, proc(pid, "task/" + std::to_string(pid) + "/children")));
    for (pid_t child = 0; children >> child;) add_task(child, pid, all);
  }

  pid_t root_;
};

class RestoreWarm : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ASSERT_NE(::mkdtemp(folder_.data()), nullptr);
    commands_ = open_path(folder_ + "/commands", O_WRONLY | O_CREAT | O_APPEND, 0600);
    (void)open_path(folder_ + "/answers", O_WRONLY | O_CREAT, 0600);
    ::malloc_trim(0);  // what tests before this one left would move, too
    source_ = ::fork();
    if (source_ == 0) {
      ::setsid();
      const int null = ::open("/dev/null", O_RDWR);
      for (int fd = 0; fd <= 2; ++fd) ::dup2(null, fd);
      ::close_range(3, ~0u, 0);
      Program(folder_).run();
    }
    wait_for_answers();
    restore_.emplace(RestoreOptions{.own_namespaces = true}, *log_);
    gate_.emplace(FreezerCgroup::create("migrate-warm-" + std::to_string(::getpid())));
  }

  void TearDown() override {
    restore_.reset();
    for (const Pid pid : moved_) ::kill(pid.get(), SIGKILL);
    if (gate_) {
      gate_->kill_all(std::chrono::seconds(5));
      gate_->dissolve();
    }
    if (source_ > 0) {
      for (const TreeLayout::Task& t : Tree(source_).layout().tasks) ::kill(t.pid, SIGKILL);
      ::waitpid(source_, nullptr, 0);
    }
    while (::waitpid(-1, nullptr, 0) > 0) {
    }
    std::filesystem::remove_all(folder_);
  }

  void wait_for_answers() {
    ++expected_;
    const Deadline deadline = Deadline::in(std::chrono::seconds(10));
    while (std::filesystem::file_size(folder_ + "/answers") < expected_) {
      if (deadline.passed()) throw Error("the program does not answer");
      ::usleep(500);
    }
  }

  void order(const std::string& commands) {
    for (const char c : commands) {
      write_full(commands_.get(), as_bytes_of(std::string(1, c)), "commands");
      wait_for_answers();
    }
  }

  /// One round: all that is new or differs from what was sent.
  std::vector<MemoryId> round() { return round_with(Tree(source_).layout()); }
  std::vector<MemoryId> round_with(const TreeLayout& layout) {
    const std::vector<MemoryId> cold = restore_->warm(layout, &*gate_);
    for (const MemoryId& m : cold) sent_[m].clear();
    StagingSink sink(restore_->take_fill_targets());
    std::vector<PageDiscard> discards;
    for (const TreeLayout::Task& t : layout.tasks) {
      const MemoryId memory{MemoryId::Kind::task, static_cast<uint64_t>(t.pid)};
      send(sink, memory, Tree::pages(t.pid, Tree::areas(t.pid)), discards);
    }
    written_ = sink.pages_written();
    restore_->discard_pages(discards);
    return cold;
  }

  void send(StagingSink& sink, MemoryId memory, const std::vector<Page>& pages, std::vector<PageDiscard>& discards) {
    auto& sent = sent_[memory];
    std::set<uint64_t> there;
    for (const Page& page : pages) {
      there.insert(page.address);
      if (sent[page.address] == page.data) continue;
      sink.write(memory, page.address, page.data);
      sent[page.address] = page.data;
    }
    std::erase_if(sent, [&](const auto& entry) {
      if (there.contains(entry.first)) return false;
      discards.push_back({memory, entry.first, 1});
      return true;
    });
  }

  static std::vector<Page> pages_of(const PageSource& source) {
    std::vector<Page> pages;
    for (const PageRun& run : source.runs) {
      for (uint64_t i = 0; i < run.pages; ++i) {
        Page page{run.address + i * kPageSize, std::vector<std::byte>(kPageSize)};
        pread_full(source.fd.get(), page.data, page.address, "page");
        pages.push_back(std::move(page));
      }
    }
    return pages;
  }

  using Contents = std::map<std::pair<pid_t, uint64_t>, std::vector<std::byte>>;
  static Contents contents(const std::vector<std::pair<pid_t, pid_t>>& tasks) {
    Contents all;
    for (const auto& [name, pid] : tasks)
      for (Page& p : Tree::pages(pid, Tree::areas(pid))) all[{name, p.address}] = std::move(p.data);
    return all;
  }

  /// Stops, sends the rest, restores, compares.
  void move() {
    Contents before;
    ImageSet images;
    std::vector<std::string> maps_before;
    const TreeLayout layout = Tree(source_).layout();
    {
      Dump dump({.root = Pid(source_)}, *log_);
      std::vector<std::pair<pid_t, pid_t>> tasks;
      for (const TreeLayout::Task& t : layout.tasks) tasks.emplace_back(t.pid, t.pid);
      before = contents(tasks);
      for (const TreeLayout::Task& t : layout.tasks) maps_before.push_back(maps(t.pid));
      images = std::move(dump.images());
      restore_->prepare(images, &*gate_);
      for (const MemoryId& m : restore_->cold()) sent_[m].clear();
      StagingSink sink(restore_->take_fill_targets());
      std::vector<PageDiscard> discards;
      for (const PageSource& source : dump.memories()) send(sink, source.memory, pages_of(source), discards);
      restore_->discard_pages(discards);
      written_ = sink.pages_written();
      dump.tree().kill();
    }
    ::waitpid(source_, nullptr, 0);
    source_ = 0;
    restore_->finish(images);
    moved_ = restore_->tasks();
    std::vector<std::pair<pid_t, pid_t>> tasks;
    size_t at_task = 0;
    for (const TreeLayout::Task& t : layout.tasks) {
      const pid_t pid = outside(t.pid);
      ASSERT_GT(pid, 0) << "task " << t.pid << " is missing";
      tasks.emplace_back(t.pid, pid);
      EXPECT_EQ(maps(pid), maps_before[at_task++]);
    }
    const Contents after = contents(tasks);
    compare(before, after);
    restore_->open_gate();
    order("w");
  }

  /// All equal, but for the area of restartable sequences, which the kernel writes to (rseq(2), 32 bytes).
  static void compare(const Contents& before, const Contents& after) {
    EXPECT_EQ(before.size(), after.size()) << "pages";
    for (const auto& [where, data] : before) {
      const auto it = after.find(where);
      ASSERT_NE(it, after.end()) << std::hex << where.second << " of " << std::dec << where.first;
      size_t first = kPageSize, last = 0;
      for (size_t i = 0; i < kPageSize; ++i) {
        if (data[i] == it->second[i]) continue;
        first = std::min(first, i);
        last = i;
      }
      EXPECT_TRUE(first > last || last / 32 == first / 32)
          << std::hex << where.second << " of " << std::dec << where.first << " from " << first << " to " << last;
    }
  }

  /// Ranges, access and flags that count; neighbours that are alike may be one mapping or several.
  static std::string maps(pid_t pid) {
    std::ostringstream text;
    uint64_t end = 0;
    std::string last;
    for (const Vma& v : parse_smaps(read_file_at(AT_FDCWD, proc(pid, "smaps")))) {
      if (v.name.starts_with("[v")) continue;
      std::ostringstream kind;
      kind << v.prot << " " << v.shared << " " << (v.shared ? 0 : v.inode) << " " << v.has(VmFlag::no_reserve)
           << v.has(VmFlag::grows_down) << v.has(VmFlag::dont_fork) << v.has(VmFlag::uffd_missing)
           << v.has(VmFlag::huge_page);
      if (v.range.start.get() != end || kind.str() != last) {
        text << std::hex << "-" << end << " " << last << "\n" << v.range.start.get();
        last = kind.str();
      }
      end = v.range.end.get();
    }
    text << "-" << end << " " << last << "\n";
    return text.str();
  }

  /// Pages in the staging memory of a shell.
  static uint64_t staged_pages(pid_t shell) {
    uint64_t pages = 0;
    const Fd map = open_path(proc(shell, "pagemap"), O_RDONLY);
    for (const Vma& v : parse_smaps(read_file_at(AT_FDCWD, proc(shell, "smaps")))) {
      if (!v.has(VmFlag::dont_fork) || v.range.bytes() > uint64_t{1} << 35 || v.name.starts_with("[v")) continue;
      std::vector<uint64_t> entries(v.range.pages());
      pread_full(map.get(), std::as_writable_bytes(std::span(entries)), v.range.start.get() / kPageSize * 8, "pagemap");
      pages +=
          static_cast<uint64_t>(std::count_if(entries.begin(), entries.end(), [](uint64_t e) { return e >> 62 != 0; }));
    }
    // The reservation is staged as one; its pages would take long to find.
    for (const Vma& v : parse_smaps(read_file_at(AT_FDCWD, proc(shell, "smaps")))) {
      if (!v.has(VmFlag::dont_fork) || v.range.bytes() <= uint64_t{1} << 35) continue;
      for (unsigned i = 10; i < 40; ++i) {
        std::vector<uint64_t> entries((1 << 20) / kPageSize);
        pread_full(map.get(), std::as_writable_bytes(std::span(entries)),
                   (v.range.start.get() + (uint64_t{i} << 30)) / kPageSize * 8, "pagemap");
        pages += static_cast<uint64_t>(
            std::count_if(entries.begin(), entries.end(), [](uint64_t e) { return e >> 62 != 0; }));
      }
    }
    return pages;
  }

  pid_t outside(pid_t inside) const {
    for (const Pid pid : moved_) {
      const std::string status = read_file_at(AT_FDCWD, proc(pid.get(), "status"));
      if (status.find("\t" + std::to_string(inside) + "\n", status.find("NSpid:")) < status.find("NSpgid:"))
        return pid.get();
    }
    return 0;
  }

  LoggerPtr log_ = null_logger();
  std::string folder_ = "/tmp/migrate-warm-XXXXXX";
  Fd commands_;
  pid_t source_ = 0;
  uint64_t expected_ = 0;
  std::optional<FreezerCgroup> gate_;
  std::optional<Restore> restore_;
  std::vector<Pid> moved_;
  std::map<MemoryId, std::map<uint64_t, std::vector<std::byte>>> sent_;
  uint64_t written_ = 0;
};

TEST_F(RestoreWarm, MemoryGrowsShrinksAndIsDiscarded) {
  EXPECT_EQ(round().size(), 1u);
  const uint64_t all = written_;
  for (const char* commands : {"g", "w", "d", "gs", "gwd", "ss", "ggw"}) {
    order(commands);
    EXPECT_TRUE(round().empty()) << commands;
    EXPECT_LT(written_, all) << commands;
    EXPECT_EQ(staged_pages(restore_->tasks().front().get()), sent_.begin()->second.size())
        << "as much as the source has";
  }
  order("wd");
  move();
  EXPECT_LT(written_, all) << "what was filled is kept";
  EXPECT_TRUE(std::none_of(restore_->cold().begin(), restore_->cold().end(),
                           [](const MemoryId& m) { return m.kind == MemoryId::Kind::task; }));
}

TEST_F(RestoreWarm, TasksComeAndGo) {
  EXPECT_EQ(round().size(), 1u);
  order("f");
  EXPECT_EQ(round().size(), 1u) << "the new task";
  order("S");
  EXPECT_TRUE(round().empty());
  order("fw");
  EXPECT_EQ(round().size(), 1u);
  order("G");
  EXPECT_TRUE(round().empty());
  order("k");
  EXPECT_TRUE(round().empty());
  order("fg");
  EXPECT_EQ(round().size(), 1u);
  order("f");  // known to the final images only
  move();
  EXPECT_EQ(restore_->cold().size(), 2u) << "that task and the shared memory";
}

TEST_F(RestoreWarm, TasksThatEndBecomeZombies) {
  order("f");
  EXPECT_EQ(round().size(), 2u);
  order("fz");
  move();
}

TEST_F(RestoreWarm, AnotherSessionIsBuiltAnew) {
  order("f");
  TreeLayout wrong = Tree(source_).layout();
  ASSERT_EQ(wrong.tasks.size(), 2u);
  wrong.tasks[1].sid = wrong.tasks[1].pgid = wrong.tasks[1].pid;
  EXPECT_EQ(round_with(wrong).size(), 2u);
  const Pid init = restore_->init();
  order("w");
  EXPECT_EQ(round().size(), 2u) << "all is cold";
  EXPECT_NE(restore_->init(), init);
  order("d");
  EXPECT_TRUE(round().empty());
  move();
}

TEST_F(RestoreWarm, ShellThatDiedIsMadeAnew) {
  order("f");
  EXPECT_EQ(round().size(), 2u);
  ::kill(restore_->tasks().back().get(), SIGKILL);
  EXPECT_EQ(round().size(), 2u) << "all is cold";
  move();
}

/// MIGRATE_TEST_SEED and what follows it.
class RestoreWarmRandom : public RestoreWarm, public testing::WithParamInterface<int> {};
INSTANTIATE_TEST_SUITE_P(Seeds, RestoreWarmRandom, testing::Range(0, 6));

TEST_P(RestoreWarmRandom, EndsEqual) {
  const char* first = std::getenv("MIGRATE_TEST_SEED");
  std::mt19937 random(static_cast<unsigned>((first != nullptr ? std::atoi(first) : 0) + GetParam()));
  std::string all;
  for (int rounds = 0; rounds < 8; ++rounds) {
    for (unsigned n = random() % 5; n > 0; --n) {
      const char c = "ggswwddfffkzSG"[random() % 14];
      all += c;
      order(std::string(1, c));
    }
    all += '|';
    if (rounds < 7) round();
  }
  SCOPED_TRACE(all);
  move();
}

TEST_F(RestoreWarm, FirstKnownWithTheFinalImages) {
  move();
  EXPECT_EQ(restore_->cold().size(), 2u);
}

TEST_F(RestoreWarm, DiscardLeavesNothing) {
  order("f");
  round();
  restore_->discard();
  EXPECT_TRUE(gate_->members().empty());
  EXPECT_EQ(round().size(), 2u) << "and it can begin again";
}

TEST(StagedAreasPlan, KeepsWhatIsTheSame) {
  const std::vector<StagedArea> have{{0x1000, 0x5000}, {0x5000, 0x9000, true}, {0x20000, 0x30000}};
  const std::vector<StagedArea> want{{0x0000, 0x2000}, {0x3000, 0x6000}, {0x6000, 0x8000, true}, {0x28000, 0x38000}};
  const AreaChange change = compare_areas(have, want);
  EXPECT_TRUE(change.replaced);
  EXPECT_EQ(change.kept,
            (std::vector<StagedArea>{{0x1000, 0x2000}, {0x3000, 0x5000}, {0x6000, 0x8000, true}, {0x28000, 0x30000}}));
  EXPECT_EQ(change.dropped, (std::vector<StagedArea>{
                                {0x2000, 0x3000}, {0x5000, 0x6000, true}, {0x8000, 0x9000, true}, {0x20000, 0x28000}}));
  EXPECT_EQ(change.added, (std::vector<StagedArea>{{0x0000, 0x1000}, {0x5000, 0x6000}, {0x30000, 0x38000}}));
}

TEST(StagedAreasPlan, DistanceGivesWayAndAFullSpaceIsTold) {
  const std::vector<AddressRange> staged{{0x10000000000, 0x18000000000}};
  const uint64_t first = pick_distance(staged, {}, {});
  const std::vector<AddressRange> there{{staged_address(0x10000000000, first), staged_address(0x18000000000, first)}};
  const uint64_t second = pick_distance(staged, there, {});
  EXPECT_NE(first, second);
  EXPECT_NE(pick_distance(staged, {}, there), first);
  EXPECT_FALSE(distance_fits(first, staged, there));
  const std::vector<AddressRange> most{{0x10000, 0x500000000000}};
  EXPECT_THROW(pick_distance(most, {}, {}), Error);
}

TEST(StagedAreasMapped, ContentsOutliveMovesAndDiscardsAreHoles) {
  constexpr uint64_t kFinal = 0x30000000000;
  StagedAreas areas(::getpid());
  const std::vector<StagedArea> first{{kFinal, kFinal + (4 << 20)}};
  EXPECT_FALSE(areas.follow(first, {}, {}, false));
  EXPECT_TRUE(areas.areas().front().registered);
  EXPECT_FALSE(areas.follow(first, {}, {}, false));
  EXPECT_FALSE(areas.areas().front().registered);
  std::memset(at(areas.staging(kFinal)), 0x5a, 4 << 20);
  areas.discard({kFinal + (1 << 20), kFinal + (2 << 20)});
  areas.discard({0, uint64_t{1} << 40});  // not staged
  // It grows on both sides, loses a part, and something of the final address space comes to where it is staged.
  const uint64_t old = areas.staging(kFinal);
  const std::vector<StagedArea> grown{{kFinal - (1 << 20), kFinal + (3 << 20)},
                                      {kFinal + (7 << 19), kFinal + (5 << 20)}};
  const std::vector<AddressRange> others{{old, old + kPageSize}};
  EXPECT_FALSE(areas.follow(grown, {}, others, false));
  EXPECT_NE(areas.staging(kFinal), old);
  EXPECT_FALSE(areas.follow(grown, {}, others, true));
  const auto all = [&](uint64_t from, uint64_t to, int value) {
    for (uint64_t i = from; i < to; i += 512)
      if (*at(areas.staging(kFinal + i)) != static_cast<std::byte>(value)) return false;
    return true;
  };
  EXPECT_TRUE(all(0, 1 << 20, 0x5a));
  EXPECT_TRUE(all(1 << 20, 2 << 20, 0));
  EXPECT_TRUE(all(2 << 20, 3 << 20, 0x5a));
  EXPECT_TRUE(all(7 << 19, 4 << 20, 0x5a));
  EXPECT_TRUE(all(4 << 20, 5 << 20, 0));
  EXPECT_FALSE(areas.follow({}, {}, {}, true));
}

std::vector<TaskNode> tree_of(std::vector<std::array<pid_t, 4>> rows) {
  TreeLayout layout;
  for (const auto& [pid, ppid, pgid, sid] : rows) layout.tasks.push_back({pid, ppid, pgid, sid, {}});
  return read_tree(layout);
}

TEST(RestoreTreeChange, NewGoneAndChanged) {
  const auto have = tree_of({{10, 0, 10, 10}, {11, 10, 10, 10}, {12, 11, 10, 10}, {13, 10, 10, 10}});
  auto want = tree_of({{10, 0, 10, 10}, {13, 10, 13, 13}, {14, 13, 14, 13}, {15, 10, 13, 10}});
  EXPECT_THROW(plan_change(have, want = tree_of({{10, 0, 10, 10}, {12, 10, 10, 10}})), Error) << "another parent";
  EXPECT_THROW(plan_change(have, want = tree_of({{10, 0, 10, 10}, {13, 10, 13, 9}})), Error) << "another session";
  EXPECT_THROW(plan_change(have, want = tree_of({{11, 0, 10, 10}})), Error) << "another root";
  want = tree_of({{10, 0, 10, 10}, {13, 10, 13, 13}, {14, 13, 14, 13}, {15, 10, 20, 10}, {16, 15, 20, 10}});
  const TreeChange change = plan_change(have, want);
  ASSERT_EQ(change.gone.size(), 2u);
  EXPECT_EQ(change.gone[0].pid, 12);
  EXPECT_EQ(change.gone[0].parent, 11);
  EXPECT_EQ(change.gone[1].pid, 11);
  EXPECT_EQ(change.affected, (std::vector<int>{0, 1}));
  EXPECT_EQ(change.fresh, (std::vector<bool>{false, false, true, true, true}));
  EXPECT_TRUE(want[1].new_session);
  EXPECT_TRUE(want[2].new_group);
  EXPECT_EQ(want[3].group_helper, 20);
  EXPECT_EQ(want[4].group_helper, 0);
  EXPECT_EQ(want[4].join_group, 20);
}

TEST(RestoreTreeChange, HostileLayoutsAreThrownOut) {
  EXPECT_THROW(tree_of({}), Corrupt);
  EXPECT_THROW(tree_of({{10, 0, 10, 10}, {10, 10, 10, 10}}), Corrupt);
  EXPECT_THROW(tree_of({{10, 0, 10, 10}, {12, 11, 10, 10}}), Corrupt);
  EXPECT_THROW(tree_of({{-4, 0, 10, 10}}), Corrupt);
  for (const auto& [start, end] :
       {std::pair<uint64_t, uint64_t>{0x2000, 0x1000}, {0x1001, 0x3000}, {0x1000, ~uint64_t{0xfff}}}) {
    TreeLayout layout;
    layout.tasks.push_back({10, 0, 10, 10, {{start, end}}});
    EXPECT_THROW(read_tree(layout), Corrupt);
  }
}

}  // namespace
}  // namespace migrate
