// Pipes, and FIFOs, which are pipes with a path.
#include <poll.h>

#include <functional>
#include <set>

#include "core/base/refusals.h"
#include "core/files/kind.h"
#include "core/files/paths.h"
#include "core/files/pipe.h"
#include "core/files/pipe_restore.h"
#include "core/files/regular_restore.h"
#include "core/files/running_tree.h"
#include "core/files/status_flags.h"
#include "ext/ext.pb.h"

namespace migrate {
namespace {

/// Pipes of which the other end may be outside of the tree.
class PipeEnds {
 public:
  void see(const OpenFile& file) {
    const auto [it, fresh] = pipes_.try_emplace(file.link);
    Pipe& pipe = it->second;
    if (fresh) {
      pollfd p{file.ours.get(), POLLIN | POLLOUT, 0};
      check(::poll(&p, 1, 0), "poll", "a pipe");
      // As in PipeDumper: what a single kind of end tells about the other.
      pipe.other_side = (p.revents & (file.access() == O_RDONLY ? POLLHUP : POLLERR)) == 0;
      pipe.who = file.who();
      pipe.inode = inode_of(file.st);
    }
    pipe.reader |= file.access() != O_WRONLY;
    pipe.writer |= file.access() != O_RDONLY;
  }

  void demand_none_outside(const RunningTree& tree) const {
    Refusals refusals;
    for (const auto& [link, pipe] : pipes_) {
      if ((pipe.reader && pipe.writer) || !pipe.other_side) continue;
      refusals.ask([&, &link = link, &pipe = pipe] {
        const bool fifo = link.starts_with("/");
        if (const auto holder = fifo && pipe.reader ? tree.outside_writer(pipe.inode) : tree.outside_holder(link))
          throw to_outside(pipe, *holder);
      });
    }
    refusals.demand_none();
  }

 private:
  struct Pipe {
    bool reader = false, writer = false, other_side = false;
    std::string who;
    InodeKey inode;
  };

  static Refusal to_outside(const Pipe& pipe, const std::string& holder) {
    return {
        pipe.who +
            (pipe.reader ? ", the read end of a pipe whose write end" : ", the write end of a pipe whose read end") +
            " is held by " + holder + " outside of the tree",
        "redirect it to a file or /dev/null, or move the other process along"};
  }

  std::map<std::string, Pipe> pipes_;  ///< by link
};

class PipeDump : public DumpKind {
 public:
  explicit PipeDump(const DumpServices& services) : pipes_(services.context) {}
  bool matches(const OpenFile& file) const override { return file.link.starts_with("pipe:["); }
  void dump(const OpenFile& file) override { pipes_.dump_pipe(file); }
  void finish(const DescriptorTables&) override { pipes_.check_ends(); }
  void preflight(const OpenFile& file, Preflight&) override { ends_.see(file); }
  void preflight_end(Preflight& preflight) override { ends_.demand_none_outside(preflight.tree); }

 private:
  PipeDumper pipes_;
  PipeEnds ends_;
};

class FifoDump : public DumpKind {
 public:
  explicit FifoDump(const DumpServices& services) : fifos_(services.context), regular_(services.regular) {}
  bool matches(const OpenFile& file) const override {
    return file.link.starts_with("/") && file.type() == S_IFIFO && (file.info.flags & O_PATH) == 0;
  }
  void dump(const OpenFile& file) override { fifos_.dump_fifo(file, regular_); }
  void finish(const DescriptorTables&) override { fifos_.check_fifo_ends(); }
  void preflight(const OpenFile& file, Preflight&) override { ends_.see(file); }
  void preflight_end(Preflight& preflight) override { ends_.demand_none_outside(preflight.tree); }

 private:
  PipeDumper fifos_;
  RegularDumper& regular_;
  PipeEnds ends_;
};

class PipeRestore : public RestoreKind {
 public:
  explicit PipeRestore(const RestoreServices& services) : services_(services), pipes_(services.images) {}
  Fd open(const UsedFile& file) override {
    return pipes_.open_pipe(file.entry.pipe(), services_.owner(file), services_.ours());
  }
  void seal(const std::map<uint32_t, int>&) override { pipes_.finish(); }

 private:
  const RestoreServices services_;
  PipeRestorer pipes_;
};

class FifoRestore : public RestoreKind {
 public:
  explicit FifoRestore(const RestoreServices& services) : services_(services), fifos_(services.images) {
    auto reader = services.images.read(kWaitingReadersImage, kWaitingReadersMagic);
    ext::WaitingReader waiting;
    while (reader && reader->next(waiting)) waiting_.insert(waiting.id());
  }
  bool has_checks() const override { return services_.regular.has_ghosts(); }
  void check(const UsedFile& file) override { services_.regular.check_ghost(path_of(file), file.holders); }
  bool by_path() const override { return true; }
  Fd open(const UsedFile& file) override {
    const bool waits = waiting_.contains(file.id) && (path_of(file).flags() & O_ACCMODE) == O_RDONLY;
    Fd fd = open(file, [&](int found, uint32_t flags) {
      return fifos_.open_fifo(file.entry.fifo(), found, flags, services_.paths, waits);
    });
    if (!waits) return fd;
    // Until nobody writes, us included, it only keeps what is in the FIFO.
    later_.push_back({file, std::move(fd)});
    return {};
  }
  std::map<uint32_t, Fd> connect() override {
    fifos_.finish();
    std::map<uint32_t, Fd> opened;
    for (const Later& later : later_)
      opened[later.file.id] =
          open(later.file, [](int found, uint32_t) { return reopen(found, O_RDONLY | O_NONBLOCK, "a FIFO"); });
    later_.clear();
    return opened;
  }

 private:
  const img::reg_file_entry& path_of(const UsedFile& file) const {
    const auto path = services_.entries.find(file.entry.fifo().regf_id());
    if (path == services_.entries.end() || path->second.type() != img::fd_types::REG)
      throw Corrupt("files.img", "a FIFO has no path");
    return path->second.reg();
  }

  Fd open(const UsedFile& file, const std::function<Fd(int, uint32_t)>& open_found) {
    const img::reg_file_entry& path = path_of(file);
    Fd fd;
    services_.regular.with_found(path, file.holders, [&](int found) { fd = open_found(found, path.flags()); });
    set_status_flags(fd.get(), path.flags(), path.name());
    return fd;
  }

  struct Later {
    UsedFile file;
    Fd keeper;
  };
  const RestoreServices services_;
  PipeRestorer fifos_;
  std::set<uint32_t> waiting_;
  std::vector<Later> later_;
};

EntryFacts facts_of_fifo(const img::file_entry& entry) { return {entry.has_fifo(), entry.fifo().id(), 0, nullptr}; }

}  // namespace

extern const Kind kPipe{img::fd_types::PIPE, facts_of_part<&img::file_entry::has_pipe, &img::file_entry::pipe>,
                        make_dump<PipeDump>, make_restore<PipeRestore>};
extern const Kind kFifo{img::fd_types::FIFO, facts_of_fifo, make_dump<FifoDump>, make_restore<FifoRestore>};

}  // namespace migrate
