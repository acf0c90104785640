// For the tests of warm fill: a fixture that sends a program in rounds as a tracker would, moves it and compares.
#pragma once

#include "tests/core/restore_warm_program.h"

namespace migrate::warm_test {

class RestoreWarm : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ASSERT_NE(::mkdtemp(folder_.data()), nullptr);
    commands_ = open_path(folder_ + "/commands", O_WRONLY | O_CREAT | O_APPEND, 0600);
    (void)open_path(folder_ + "/answers", O_WRONLY | O_CREAT, 0600);
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

  /// One round: all that is new or differs from what was sent. Returns the cold tasks.
  std::vector<MemoryId> round() { return round_with(Tree(source_).layout()); }
  std::vector<MemoryId> round_with(const TreeLayout& layout) {
    std::vector<MemoryId> cold = restore_->warm(layout, &*gate_);
    for (const MemoryId& m : cold) sent_[m].clear();
    std::erase_if(sent_, [&](const auto& entry) {
      return entry.first.kind == MemoryId::Kind::shmem &&
             std::none_of(layout.objects.begin(), layout.objects.end(),
                          [&](const TreeLayout::Object& o) { return o.id == entry.first.id; });
    });
    StagingSink sink(restore_->take_fill_targets());
    std::vector<PageDiscard> discards;
    for (const TreeLayout::Task& t : layout.tasks) {
      const MemoryId memory{MemoryId::Kind::task, static_cast<uint64_t>(t.pid)};
      send(sink, memory, Tree::pages(t.pid, Tree::areas(t.pid)), discards);
    }
    for (auto& [id, fd] : Tree(source_).objects()) {
      PageSource source{
          .memory = {MemoryId::Kind::shmem, id}, .runs = scan_object_pages(fd.get()), .fd = std::move(fd)};
      send(sink, source.memory, pages_of(source), discards);
    }
    written_ = sink.pages_written();
    restore_->discard_pages(discards);
    std::erase_if(cold, [](const MemoryId& m) { return m.kind == MemoryId::Kind::shmem; });
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
    std::vector<std::byte> mapped_before;
    uint64_t copies_before = 0;
    ImageSet images;
    std::vector<std::string> maps_before;
    const TreeLayout layout = Tree(source_).layout();
    {
      Dump dump({.root = Pid(source_)}, *log_);
      std::vector<std::pair<pid_t, pid_t>> tasks;
      for (const TreeLayout::Task& t : layout.tasks) tasks.emplace_back(t.pid, t.pid);
      before = contents(tasks);
      mapped_before = mapped(source_);
      copies_before = Tree::pages(source_, {{kFileAt, kFileAt + kFile}}).size();
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
    EXPECT_TRUE(mapped(tasks.front().second) == mapped_before);
    EXPECT_EQ(Tree::pages(tasks.front().second, {{kFileAt, kFileAt + kFile}}).size(), copies_before);
    restore_->open_gate();
    order("w");
  }

  /// What shared memory and the file's mapping hold. Behind the end of the memfd there is nothing.
  static std::vector<std::byte> mapped(pid_t pid) {
    std::vector<std::byte> all(kShared + kMemfd + kFile);
    const Fd mem = open_path(proc(pid, "mem"), O_RDONLY);
    const auto read = [&](uint64_t address, std::span<std::byte> to) {
      for (uint64_t i = 0; i < to.size(); i += kPageSize)
        static_cast<void>(!::pread(mem.get(), to.data() + i, kPageSize, static_cast<off_t>(address + i)));
    };
    read(kSharedAt, std::span(all).first(kShared));
    read(kMemfdAt, std::span(all).subspan(kShared, kMemfd));
    read(kFileAt, std::span(all).last(kFile));
    return all;
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

}  // namespace migrate::warm_test
