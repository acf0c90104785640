// Memory that page tables do not tell enough about: NUMBER MiB (default 8) each of shared anonymous memory and of a
// mapped memfd, a memfd that is only open, one that is sealed, one that is made anew all the time, and private pages of
// a file. Parent and child write NUMBER (default 1000) pages a second, through mappings and descriptors, punch holes,
// let the memfd grow and shrink, and throw copies of file pages away. A book says what each page must hold.
#include <signal.h>
#include <sys/prctl.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "workload.h"

using namespace workload;

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kOpenPages = 1024, kFilePages = 256, kSealedPages = 16, kAnewPages = 8;

struct Page {
  uint64_t words[kPage / 8];
};

/// Page `page` of a memory, as it was written the `serial`th time. 0: it was never written, or taken away.
void make_page(Page& out, uint64_t serial, uint64_t place) {
  uint64_t x = (serial * 0x9E3779B97F4A7C15ULL) ^ (place * 0xD1B54A32D192ED03ULL);
  out.words[0] = serial;
  for (size_t i = 1; i < kPage / 8; ++i)
    out.words[i] = serial == 0 ? 0 : x = x * 6364136223846793005ULL + 1442695040888963407ULL;
}

void expect_page(const void* page, uint64_t serial, uint64_t place, const std::string& what) {
  Page wanted;
  make_page(wanted, serial, place);
  if (std::memcmp(page, &wanted, kPage) == 0) return;
  uint64_t found = 0;
  std::memcpy(&found, page, sizeof found);
  throw std::runtime_error(what + " page " + std::to_string(place) + " must be of time " + std::to_string(serial) +
                           ", is of " + std::to_string(found));
}

struct Control {
  std::atomic<bool> pause{false}, paused[2]{};
  std::atomic<uint64_t> steps[2]{};
  std::atomic<uint64_t> open_pages{0}, anew{0};
};

class Memories {
 public:
  explicit Memories(const Workload& w, size_t mebibytes) : pages(mebibytes * 256) {
    control = new (shared_memory<Control>()) Control;
    book = shared_memory<uint64_t>(2 * pages + kOpenPages + kFilePages);
    anonymous = shared_memory<Page>(pages);
    memfd = must(memfd_create("mapped", MFD_CLOEXEC), "memfd_create");
    must(ftruncate(memfd, static_cast<off_t>(pages * kPage)), "ftruncate");
    mapped = map(memfd, pages, MAP_SHARED);
    open = must(memfd_create("only open", MFD_CLOEXEC), "memfd_create");
    make_sealed();
    anew = must(memfd_create("fleeting", MFD_CLOEXEC), "memfd_create");
    make_anew();
    const int data = must(::open(w.path("data").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666), "open data");
    for (uint64_t i = 0; i < kFilePages; ++i) put(data, i, 1'000'000 + i);
    must(fsync(data), "fsync");
    file = map(data, kFilePages, MAP_PRIVATE);
    close(data);
    for (size_t i = 0; i < pages; ++i) {
      write(anonymous, anonymous_book(), i, 1);
      write(mapped, mapped_book(), i, 1);
    }
  }

  /// One step of writer 0 (the parent) or 1 (the child): each has pages of its own.
  void step(int who, uint64_t& x) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    const uint64_t serial = ++control->steps[who] * 2 + static_cast<uint64_t>(who);
    const uint64_t i = (x >> 20) % (pages / 2) * 2 + static_cast<uint64_t>(who);
    const uint64_t what = (x >> 8) % 100;
    if (what < 40) {
      write(anonymous, anonymous_book(), i, serial);
    } else if (what < 60) {
      write(mapped, mapped_book(), i, serial);
    } else if (what < 75) {  // unseen by page tables
      put(memfd, i, mapped_book()[i] = serial);
    } else if (what < 78) {
      madvise(&anonymous[i], kPage, MADV_REMOVE);
      anonymous_book()[i] = 0;
    } else if (what < 81) {
      must(fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(i * kPage), kPage),
           "fallocate");
      mapped_book()[i] = 0;
    } else if (who == 0) {
      own_step(what, x >> 32, serial);
    }
  }

  void verify() const {
    for (size_t i = 0; i < pages; ++i) {
      expect_page(&anonymous[i], anonymous_book()[i], i, "anonymous");
      expect_page(&mapped[i], mapped_book()[i], i, "mapped");
    }
    verify_open();
    for (uint64_t i = 0; i < kFilePages; ++i) {
      const uint64_t serial = file_book()[i];
      expect_page(&file[i], serial == 0 ? 1'000'000 + i : serial, i, "file");
    }
    Page page;
    for (uint64_t i = 0; i < kSealedPages; ++i) {
      get(sealed, i, page);
      expect_page(&page, 77, i, "sealed");
    }
    expect_equal(must(fcntl(sealed, F_GET_SEALS), "F_GET_SEALS"), kSeals, "the seals");
    for (uint64_t i = 0; i < kAnewPages; ++i) {
      get(anew, i, page);
      expect_page(&page, control->anew, i, "made anew");
    }
  }

  Control* control;

 private:
  static constexpr int kSeals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW;

  uint64_t* anonymous_book() const { return book; }
  uint64_t* mapped_book() const { return book + pages; }
  uint64_t* open_book() const { return book + 2 * pages; }
  uint64_t* file_book() const { return open_book() + kOpenPages; }

  static Page* map(int fd, size_t pages, int flags) {
    void* p = mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, flags, fd, 0);
    expect(p != MAP_FAILED, "mmap failed");
    return static_cast<Page*>(p);
  }
  static void write(Page* area, uint64_t* serials, uint64_t i, uint64_t serial) {
    make_page(area[i], serial, i);
    serials[i] = serial;
  }
  static void put(int fd, uint64_t i, uint64_t serial) {
    Page page;
    make_page(page, serial, i);
    expect(pwrite(fd, &page, kPage, static_cast<off_t>(i * kPage)) == kPage, "pwrite failed");
  }
  static void get(int fd, uint64_t i, Page& page) {
    expect(pread(fd, &page, kPage, static_cast<off_t>(i * kPage)) == kPage, "pread failed");
  }

  void make_sealed() {
    sealed = must(memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create");
    for (uint64_t i = 0; i < kSealedPages; ++i) put(sealed, i, 77);
    must(fcntl(sealed, F_ADD_SEALS, kSeals), "F_ADD_SEALS");
  }

  /// Another object each time, under the same number.
  void make_anew() {
    const int fresh = must(memfd_create("fleeting", MFD_CLOEXEC), "memfd_create");
    const uint64_t serial = control->anew + 1;
    for (uint64_t i = 0; i < kAnewPages; ++i) put(fresh, i, serial);
    must(dup3(fresh, anew, O_CLOEXEC), "dup3");
    control->anew = serial;
    close(fresh);
  }

  /// What only the parent does.
  void own_step(uint64_t what, uint64_t x, uint64_t serial) {
    const uint64_t size = control->open_pages;
    if (what < 86) {
      const uint64_t i = x % kFilePages;
      if (x / kFilePages % 4 == 0) {
        madvise(&file[i], kPage, MADV_DONTNEED);
        file_book()[i] = 0;
      } else {
        write(file, file_book(), i, serial);
      }
    } else if (what < 92) {  // grows, with a hole now and then
      if (size + 2 > kOpenPages) return;
      const uint64_t hole = x % 5 == 0 ? 1 : 0;
      if (hole != 0) open_book()[size] = 0;
      put(open, size + hole, open_book()[size + hole] = serial);
      control->open_pages = size + hole + 1;
    } else if (what < 98) {
      if (size != 0) put(open, x % size, open_book()[x % size] = serial);
    } else if (what < 99) {
      const uint64_t left = size * 3 / 4;
      must(ftruncate(open, static_cast<off_t>(left * kPage)), "ftruncate");
      control->open_pages = left;
    } else if (x % 20 == 0) {
      make_anew();
    }
  }

  void verify_open() const {
    struct stat st {};
    must(fstat(open, &st), "fstat");
    expect_equal(static_cast<uint64_t>(st.st_size), control->open_pages * kPage, "the size of the open memfd");
    Page page;
    for (uint64_t i = 0; i < control->open_pages; ++i) {
      get(open, i, page);
      expect_page(&page, open_book()[i], i, "open");
    }
  }

  size_t pages;
  uint64_t* book;
  Page *anonymous, *mapped, *file;
  int memfd = -1, open = -1, sealed = -1, anew = -1;
};

[[noreturn]] void write_on(Memories& memories, int who, long rate) {
  uint64_t x = 88172645463325252ULL + static_cast<uint64_t>(who);
  for (;;) {
    memories.control->paused[who] = memories.control->pause.load();
    if (!memories.control->pause)
      for (long n = 0; n < std::max(rate / 1000, 1L); ++n) memories.step(who, x);
    sleep_ms(2);
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const long rate = w.number(1, 1000);
        Memories memories(w, static_cast<size_t>(w.number(0, 8)));
        if (must(fork(), "fork") == 0) {
          prctl(PR_SET_PDEATHSIG, SIGKILL);
          try {
            write_on(memories, 1, rate);
          } catch (const std::exception& e) {
            std::fprintf(stderr, "shared: child: %s\n", e.what());
            std::_Exit(1);
          }
        }
        std::thread([&] { write_on(memories, 0, rate); }).detach();
        Control& control = *memories.control;
        await([&] { return control.steps[0] > 100 && control.steps[1] > 100; }, "the writers");
        w.serve([&] {
          const uint64_t before[2] = {control.steps[0], control.steps[1]};
          await([&] { return control.steps[0] > before[0] && control.steps[1] > before[1]; }, "the writers to go on");
          control.pause = true;
          await([&] { return control.paused[0] && control.paused[1]; }, "the writers to pause");
          try {
            memories.verify();
          } catch (...) {
            control.pause = false;
            throw;
          }
          control.pause = false;
        });
      },
      argv[0]);
}
