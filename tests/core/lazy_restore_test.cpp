// Trees that run before all of their pages are there: which may be left out, how they are registered, who waits.
#include <gtest/gtest.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <thread>
#include <utility>

#include "core/base/deadline.h"
#include "core/base/procfs.h"
#include "core/dump/dump.h"
#include "core/image/magic.h"
#include "core/memory/lazy_pages.h"
#include "core/memory/page_files.h"
#include "core/restore/restore.h"
#include "tests/core/forked_programs.h"

namespace migrate {
namespace {

constexpr uint64_t kAt = 0x10000000000, kListAt = 0x10040000000;
constexpr size_t kBytes = 8 << 20;

uint64_t* words_at(uint64_t address) { return reinterpret_cast<uint64_t*>(address); }  // NOLINT: the child's
uint64_t word_of(size_t page) { return page % 7 == 3 ? 0 : 0x9e3779b97f4a7c15u * (page + 1); }

constexpr size_t kEagerPage = 100;  ///< of the memory, if huge pages may be there

/// A robust list whose entries have pages of their own; the pending one is where huge pages may be.
void make_robust_list(bool huge) {
  auto* head = reinterpret_cast<robust_list_head*>(words_at(kListAt));
  auto* entry = reinterpret_cast<robust_list*>(words_at(kListAt + 4 * kPageSize));
  entry->next = &head->list;
  head->list.next = entry;
  head->futex_offset = 2 * kPageSize;
  if (huge) head->list_op_pending = reinterpret_cast<robust_list*>(words_at(kAt + kEagerPage * kPageSize));
  ::syscall(SYS_set_robust_list, head, sizeof *head);
}

void be_on_its_own() {
  ::setsid();
  const int null = ::open("/dev/null", O_RDWR);
  for (int fd = 0; fd <= 2; ++fd) ::dup2(null, fd);
  ::close_range(3, ~0u, 0);
}

/// For SIGUSR1.
void wait_under_its_name() {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGUSR1);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  ::prctl(PR_SET_NAME, "lazy");
  int signal = 0;
  ::sigwait(&set, &signal);
}

/// Sleeps until SIGUSR1, then looks at all its memory: exit status 0 if it is as it was.
[[noreturn]] void be_program(bool huge) {
  be_on_its_own();
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
  ::mmap(words_at(kAt), kBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  ::mmap(words_at(kListAt), 8 * kPageSize, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  for (size_t i = 0; i < 8; ++i) *words_at(kListAt + i * kPageSize + 1024) = i + 1;
  if (huge) ::madvise(words_at(kAt), kBytes, MADV_HUGEPAGE);
  make_robust_list(huge);
  for (size_t page = 0; page < kBytes / kPageSize; ++page)
    if (word_of(page) != 0) *words_at(kAt + page * kPageSize + 8 * (page % 512)) = word_of(page);
  wait_under_its_name();
  for (size_t page = kBytes / kPageSize; page-- > 0;)
    if (*words_at(kAt + page * kPageSize + 8 * (page % 512)) != word_of(page)) ::_exit(1);
  for (size_t i = 0; i < 8; ++i)
    if (*words_at(kListAt + i * kPageSize + 1024) != i + 1) ::_exit(2);
  ::_exit(0);
}

constexpr uint64_t kSharedAt = 0x10080000000;
constexpr size_t kSharedPages = 1024, kEntryPage = 300, kNextPage = 500, kLockDistance = 2;

/// Holds robust mutexes in shared memory until SIGUSR1, and ends.
[[noreturn]] void be_owner() {
  be_on_its_own();
  constexpr int kFlags = MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
  ::mmap(words_at(kSharedAt), kSharedPages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | kFlags, -1, 0);
  ::mmap(words_at(kListAt), kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | kFlags, -1, 0);
  for (size_t page = 0; page < kSharedPages; ++page) *words_at(kSharedAt + page * kPageSize + 1024) = page + 1;
  auto* head = reinterpret_cast<robust_list_head*>(words_at(kListAt));
  head->list.next = &head->list;
  head->futex_offset = kLockDistance * kPageSize;
  for (const size_t page : {kNextPage, kEntryPage}) {
    auto* entry = reinterpret_cast<robust_list*>(words_at(kSharedAt + page * kPageSize));
    entry->next = std::exchange(head->list.next, entry);
    *words_at(kSharedAt + (page + kLockDistance) * kPageSize) = static_cast<uint64_t>(::getpid());
  }
  ::syscall(SYS_set_robust_list, head, sizeof *head);
  wait_under_its_name();
  ::_exit(0);
}

/// The simplest daemon: brings what is touched, from the image folder.
class OnDemand {
 public:
  OnDemand(LazyMemory memory, int dirfd) : memory_(std::move(memory)), images_(dirfd) {
    stored_ = images_.locate(pagemap_name(memory_.memory));
    missing_ = pages_of(memory_.missing);
    thread_ = std::thread([this] { run(); });
  }
  ~OnDemand() {
    ended_ = true;
    thread_.join();
  }
  size_t brought() const { return brought_; }
  size_t zeros() const { return zeros_; }

 private:
  void run() {
    while (!ended_) {
      pollfd p{memory_.userfaultfd.get(), POLLIN, 0};
      if (::poll(&p, 1, 10) <= 0) continue;
      uffd_msg m{};
      if (::read(memory_.userfaultfd.get(), &m, sizeof m) != sizeof m || m.event != UFFD_EVENT_PAGEFAULT) continue;
      const uint64_t page = page_floor(m.arg.pagefault.address);
      missing_.contains(page) ? bring(page) : zero(page);
    }
  }
  void bring(uint64_t page) {
    std::array<std::byte, kPageSize> data{};
    for (const StoredPages& s : stored_) {
      if (page < s.address || page >= s.address + s.bytes) continue;
      EXPECT_EQ(pread_full(s.fd, data, s.offset + (page - s.address), "pages"), kPageSize);
    }
    uffdio_copy copy{page, reinterpret_cast<uint64_t>(data.data()), kPageSize, 0, 0};
    if (::ioctl(memory_.userfaultfd.get(), UFFDIO_COPY, &copy) == 0) ++brought_;
  }
  void zero(uint64_t page) {
    uffdio_zeropage zeropage{{page, kPageSize}, 0, 0};
    if (::ioctl(memory_.userfaultfd.get(), UFFDIO_ZEROPAGE, &zeropage) == 0) ++zeros_;
  }

  LazyMemory memory_;
  PageImages images_;
  std::vector<StoredPages> stored_;
  PageSet missing_;
  std::atomic<bool> ended_ = false;
  std::atomic<size_t> brought_ = 0, zeros_ = 0;
  std::thread thread_;
};

class LazyRestore : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    folder_ = "/tmp/migrate-lazy-XXXXXX";
    ASSERT_NE(::mkdtemp(folder_.data()), nullptr);
    dir_ = open_path(folder_, O_RDONLY | O_DIRECTORY);
  }
  void TearDown() override {
    if (pid_ > 0) ::kill(pid_, SIGKILL);
    while (::waitpid(-1, nullptr, 0) > 0) {
    }
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  /// Into the folder, as `migrate dump` would; the program is gone then.
  void dump_program(bool huge = false, bool owner = false) {
    pid_ = ::fork();
    if (pid_ == 0) owner ? be_owner() : be_program(huge);
    const Deadline deadline = Deadline::in(std::chrono::seconds(10));
    while (read_file_at(AT_FDCWD, "/proc/" + std::to_string(pid_) + "/comm") != "lazy\n" ||
           ProcDir(pid_).stat().state != 'S') {
      ASSERT_FALSE(deadline.passed());
      ::usleep(1000);
    }
    DumpOptions options;
    options.root = Pid(pid_);
    options.lazy = options.lazy_shared = true;
    Dump dump(options, *log_);
    lazy_ = dump.lazy_pages();
    {
      PageFolder pages(dir_.get(), dump.images(), false);
      pages.mark_lazy(lazy_);
      write_pages(dump.memories(), {}, pages);
    }
    images_ = std::move(dump.images());
    images_.save(dir_.get());
    dump.tree().kill();
    ::waitpid(pid_, nullptr, 0);
  }
  MemoryId memory() const { return {MemoryId::Kind::task, static_cast<uint64_t>(pid_)}; }

  std::string folder_;
  Fd dir_;
  LoggerPtr log_ = null_logger();
  pid_t pid_ = 0;
  PagesByMemory lazy_;
  ImageSet images_;
};

TEST_F(LazyRestore, WhoTouchesAPageWaitsUntilItComes) {
  dump_program();
  RestoreOptions options;
  options.lazy = true;
  Restore restore(options, *log_);
  restore.prepare(images_, nullptr);
  const PagesByMemory missing = restore.fill_from(dir_.get());
  ASSERT_TRUE(missing.contains(memory()));
  restore.finish(images_, missing);
  std::vector<LazyMemory> memories = restore.take_lazy_memories();
  ASSERT_EQ(memories.size(), 1u);
  const OnDemand daemon(std::move(memories[0]), dir_.get());
  restore.open_gate();
  ::kill(pid_, SIGUSR1);
  int status = -1;
  ::waitpid(pid_, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_GE(daemon.brought(), kBytes / kPageSize * 6 / 7) << "they were there before";
  EXPECT_GE(daemon.zeros(), kBytes / kPageSize / 7) << "of pages that the source does not have";
}

TEST_F(LazyRestore, WhatTheKernelUsesIsNeverLeftOut) {
  dump_program();
  const PageSet& lazy = lazy_.at(memory());
  EXPECT_TRUE(lazy.contains(kAt, kAt + kBytes));
  for (const uint64_t page : {0, 4, 6}) EXPECT_FALSE(lazy.contains(kListAt + page * kPageSize)) << page;
  for (const uint64_t page : {1, 2, 3, 5, 7}) EXPECT_TRUE(lazy.contains(kListAt + page * kPageSize)) << page;
  img::core_entry core;
  images_.need(image_name("core", static_cast<uint64_t>(pid_)), magic::kCore, core);
  EXPECT_FALSE(lazy.contains(core.thread_info().gpregs().sp()));
  EXPECT_FALSE(lazy.contains(core.thread_core().rseq_entry().rseq_abi_pointer()));
  EXPECT_FALSE(lazy.contains(core.thread_info().clear_tid_addr()));
  img::mm_entry mm;
  images_.need(image_name("mm", static_cast<uint64_t>(pid_)), magic::kMm, mm);
  EXPECT_FALSE(lazy.contains(mm.mm_arg_start()));
}

/// In such a call, or about to begin it anew: its number is in another register then.
TEST(EagerPages, AreThoseOfFutexesThatAreWaitedFor) {
  constexpr uint64_t kNone = ~0u, kWord = 0x5000, kSecond = 0x7000;
  const auto eager = [](uint64_t in_call, uint64_t result, int operation) {
    std::vector<img::core_entry> threads(1);
    img::user_x86_regs_entry& regs = *threads[0].mutable_thread_info()->mutable_gpregs();
    regs.set_orig_ax(in_call == kNone ? UINT64_MAX : in_call);
    regs.set_ax(result);
    regs.set_di(kWord);
    regs.set_si(static_cast<uint64_t>(operation));
    regs.set_r8(kSecond);
    return eager_pages({}, threads, -1);
  };
  for (const int operation : {FUTEX_LOCK_PI | FUTEX_PRIVATE_FLAG, FUTEX_WAKE_OP}) {
    for (const PageSet& pages :
         {eager(SYS_futex, static_cast<uint64_t>(-513), operation), eager(kNone, SYS_futex, operation)}) {
      EXPECT_TRUE(pages.contains(kWord));
      EXPECT_EQ(pages.contains(kSecond), operation == FUTEX_WAKE_OP);
    }
    EXPECT_FALSE(eager(SYS_read, SYS_futex, operation).contains(kWord)) << "the number of bytes that were read";
    EXPECT_FALSE(eager(kNone, SYS_read, operation).contains(kWord));
  }
}

/// Between its look at the word and the call.
TEST(EagerPages, AreThoseThatARunningThreadHasInARegister) {
  constexpr uint64_t kWord = 0x5000;
  const Fd mem = open_path("/proc/self/mem", O_RDONLY);
  const auto eager = [&](std::array<unsigned char, 2> code, uint64_t in_call) {
    std::vector<img::core_entry> threads(1);
    img::user_x86_regs_entry& regs = *threads[0].mutable_thread_info()->mutable_gpregs();
    regs.set_orig_ax(in_call);
    regs.set_ip(reinterpret_cast<uint64_t>(code.data()));
    regs.set_r12(kWord);
    return eager_pages({}, threads, mem.get());
  };
  EXPECT_TRUE(eager({0x48, 0x89}, UINT64_MAX).contains(kWord));
  EXPECT_FALSE(eager({0x0f, 0x05}, UINT64_MAX).contains(kWord)) << "a call that is begun anew";
  EXPECT_FALSE(eager({0x48, 0x89}, SYS_read).contains(kWord));
}

/// As khugepaged does it, without end.
class Collapsing {
 public:
  explicit Collapsing(pid_t pid) : thread_([this, pid] { run(pid); }) {}
  ~Collapsing() {
    ended_ = true;
    thread_.join();
  }

 private:
  void run(pid_t pid) const {
    constexpr int kCollapse = 25;
    iovec all{words_at(kAt), kBytes};
    while (!ended_)
      if (const auto task = open_pidfd(pid)) ::syscall(SYS_process_madvise, task->get(), &all, 1, kCollapse, 0);
  }
  std::atomic<bool> ended_ = false;
  std::thread thread_;
};

TEST_F(LazyRestore, NoHugePageBringsZerosInPlaceOfWhatComesLater) {
  dump_program(true);
  ASSERT_FALSE(lazy_.at(memory()).contains(kAt + kEagerPage * kPageSize));
  for (const bool collapses : {false, true}) {
    SCOPED_TRACE(collapses);
    RestoreOptions options;
    options.lazy = true;
    Restore restore(options, *log_);
    restore.prepare(images_, nullptr);
    std::optional<Collapsing> collapsing;
    if (collapses) collapsing.emplace(pid_);
    const PagesByMemory missing = restore.fill_from(dir_.get());
    restore.finish(images_, missing);
    std::vector<LazyMemory> memories = restore.take_lazy_memories();
    ASSERT_EQ(memories.size(), 1u);
    const OnDemand daemon(std::move(memories[0]), dir_.get());
    restore.open_gate();
    EXPECT_EQ(read_file_at(AT_FDCWD, "/proc/" + std::to_string(pid_) + "/status").find("THP_enabled:\t0"),
              std::string::npos);
    ::kill(pid_, SIGUSR1);
    int status = -1;
    ::waitpid(pid_, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
}

/// The object of be_owner().
MemoryId shared_object(const PagesByMemory& lazy) {
  for (const auto& [memory, pages] : lazy)
    if (memory.kind == MemoryId::Kind::shmem) return memory;
  return {};
}

// A thread that ends finds what is in its page tables, and nothing else.
TEST_F(LazyRestore, WhoDiesWithMutexesInSharedMemoryLeavesThemToOthers) {
  dump_program(false, true);
  const MemoryId shared = shared_object(lazy_);
  const PageSet& late = lazy_.at(shared);
  ASSERT_EQ(late.pages(), kSharedPages - 4);
  RestoreOptions options;
  options.lazy = true;
  Restore restore(options, *log_);
  restore.prepare(images_, nullptr);
  PagesByMemory missing = restore.fill_from(dir_.get());
  missing.emplace(shared, late);
  restore.finish(images_, missing);
  std::vector<LazyMemory> memories = restore.take_lazy_memories();
  ASSERT_EQ(memories.size(), 3u);
  const auto task = std::ranges::find(memories, memory(), &LazyMemory::memory);
  const auto object = std::ranges::find(memories, shared, &LazyMemory::memory);
  ASSERT_TRUE(task != memories.end() && object != memories.end());
  const OnDemand daemon(std::move(*task), dir_.get());
  restore.open_gate();
  ::kill(pid_, SIGUSR1);
  int status = -1;
  ::waitpid(pid_, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  for (const size_t page : {kEntryPage, kNextPage}) {
    uint32_t lock = 0;
    ASSERT_EQ(::pread(object->userfaultfd.get(), &lock, sizeof lock, (page + kLockDistance) * kPageSize),
              static_cast<ssize_t>(sizeof lock));
    EXPECT_EQ(lock, FUTEX_OWNER_DIED) << page;
  }
}

// The number of all mappings together.
TEST_F(LazyRestore, AnObjectMayNotHaveEveryNumber) {
  dump_program(false, true);
  const PageSet late = lazy_.at(shared_object(lazy_));
  const std::string name = image_name("mm", static_cast<uint64_t>(pid_));
  img::mm_entry mm;
  images_.need(name, magic::kMm, mm);
  for (img::vma_entry& vma : *mm.mutable_vmas())
    if (vma.start() == kSharedAt) vma.set_shmid(kSharedMappings.id);
  ImageSet images;
  images.put(name, magic::kMm, mm);
  for (const auto& [other, bytes] : images_.images())
    if (other != name) images.adopt(other, bytes);
  RestoreOptions options;
  options.lazy = true;
  Restore restore(options, *log_);
  restore.prepare(images, nullptr);
  EXPECT_THROW(restore.finish(images, {{kSharedMappings, late}}), Corrupt);
}

img::vma_entry shared_mapping(uint64_t start, uint64_t pages, uint64_t object, uint64_t page, uint32_t flags = 0) {
  img::vma_entry vma;
  vma.set_start(start);
  vma.set_end(start + pages * kPageSize);
  vma.set_pgoff(page * kPageSize);
  vma.set_shmid(object);
  vma.set_flags(MAP_SHARED | flags);
  vma.set_status(1 | 1 << 8);
  return vma;
}

TEST(LazyShared, WhatEachTaskMapsOnce) {
  constexpr uint64_t kA = 1 << 30, kB = 2UL << 30, kC = 3UL << 30;
  img::mm_entry first, second;
  // 1: both tasks, in pieces and elsewhere. 2: twice in one task. 3: locked by one. 4: too small.
  *first.add_vmas() = shared_mapping(kA, 300, 1, 0);
  *first.add_vmas() = shared_mapping(kA + 300 * kPageSize, 300, 1, 300);
  *second.add_vmas() = shared_mapping(kB, 700, 1, 0);
  *first.add_vmas() = shared_mapping(kB, 600, 2, 0);
  *first.add_vmas() = shared_mapping(kC, 10, 2, 590);
  *second.add_vmas() = shared_mapping(kC, 600, 2, 0);
  *first.add_vmas() = shared_mapping(kC + (1 << 28), 600, 3, 0);
  *second.add_vmas() = shared_mapping(kC + (1 << 28), 600, 3, 0, MAP_LOCKED);
  *first.add_vmas() = shared_mapping(kC + (2 << 28), 200, 4, 0);
  // 5: in another order.
  *first.add_vmas() = shared_mapping(kC + (3 << 28), 300, 5, 300);
  *first.add_vmas() = shared_mapping(kC + (3 << 28) + 300 * kPageSize, 300, 5, 0);
  // 6: reserved, far too much.
  *first.add_vmas() = shared_mapping(8UL << 40, (5UL << 40) / kPageSize, 6, 0);
  LazyShared shared;
  shared.add_task(first, PageSet(kA + 310 * kPageSize, kA + 312 * kPageSize));
  shared.add_task(second, PageSet(kB + 5 * kPageSize, kB + 6 * kPageSize));
  const PagesByMemory late = shared.take();
  ASSERT_EQ(late.size(), 1u);
  EXPECT_EQ(
      late.at({MemoryId::Kind::shmem, 1}),
      PageSet(0, 700 * kPageSize) - PageSet(310 * kPageSize, 312 * kPageSize) - PageSet(5 * kPageSize, 6 * kPageSize));
}

/// Else the rest of such a page would read as zeros for ever, without a word.
TEST_F(LazyRestore, APageThatWasWrittenBeforeIsNotMissing) {
  dump_program();
  img::core_entry core;
  images_.need(image_name("core", static_cast<uint64_t>(pid_)), magic::kCore, core);
  RestoreOptions options;
  options.lazy = true;
  Restore restore(options, *log_);
  restore.prepare(images_, nullptr);
  PagesByMemory missing = restore.fill_from(dir_.get());
  const uint64_t page = page_floor(core.thread_info().gpregs().sp());
  missing[memory()] = missing[memory()] | PageSet(page, page + kPageSize);
  try {
    restore.finish(images_, missing);
    ADD_FAILURE() << "it was registered";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("was written before"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace migrate
