#include "core/files/pipe.h"

#include <limits.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <algorithm>

#include "core/files/file_owners.h"
#include "core/files/paths.h"
#include "core/image/magic.h"
#include "ext/ext.pb.h"
#include "images/pipe-data.pb.h"

namespace migrate {
namespace {

short poll_now(int fd) {
  pollfd p{fd, POLLIN | POLLOUT, 0};
  check(::poll(&p, 1, 0), "poll", "a pipe");
  return p.revents;
}

constexpr std::byte kNothing{};

int fill_of(int fd) {
  int bytes = 0;
  check(::ioctl(fd, FIONREAD, &bytes), "ask the fill of", "a pipe");
  return bytes;
}

struct Queue {
  std::vector<std::byte> bytes;
  std::vector<uint32_t> packets;  ///< their lengths; none: a stream
};

/// A copy of what is queued, in a pipe of our own; returns its read end. tee(2) duplicates buffers one by one, with the
/// mark that makes them packets: as many slots as the original are enough for all of it. `one_more`: a byte of a stream
/// behind it.
Fd copy_queue(const OpenFile& file, int reader, size_t bytes, int size, bool one_more = false) {
  int ends[2];
  check(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), "make", "a pipe");
  Fd out(ends[0]);
  const Fd in(ends[1]);
  if (::fcntl(in.get(), F_SETPIPE_SZ, size) < 0)
    throw Refusal(file.who() + ", a pipe of " + std::to_string(size) + " bytes", "raise fs.pipe-max-size");
  const ssize_t n = ::tee(reader, in.get(), bytes, SPLICE_F_NONBLOCK);
  if (n != static_cast<ssize_t>(bytes)) throw Error("copy the data in a pipe:", file.who(), n < 0 ? errno : EIO);
  if (one_more) write_full(in.get(), {&kNothing, 1}, "a pipe");
  return out;
}

/// Whether the only byte in a pipe is a packet: a read of two then ends behind it.
bool is_packet(const OpenFile& file, int reader, int size) {
  const Fd copy = copy_queue(file, reader, 1, size, true);
  std::byte two[2];
  return ::read(copy.get(), two, sizeof two) == 1;
}

/// A read stops behind a packet and drops what did not fit of it (pipe_read in the kernel): that tells packets apart.
Queue read_queue(const OpenFile& file, size_t bytes, int size) {
  const Fd reader =
      file.access() == O_RDONLY ? file.ours.dup() : reopen(file.ours.get(), O_RDONLY | O_NONBLOCK, file.who());
  const Fd copy = copy_queue(file, reader.get(), bytes, size);
  Queue queue;
  queue.bytes.resize(bytes);
  for (size_t done = 0; done < bytes;) {
    const ssize_t n = ::read(copy.get(), queue.bytes.data() + done, bytes - done);
    if (n <= 0) throw Error("read the data in a pipe:", file.who(), n < 0 ? errno : EIO);
    queue.packets.push_back(static_cast<uint32_t>(n));
    done += static_cast<size_t>(n);
  }
  const Fd probe = copy_queue(file, reader.get(), bytes, size);
  std::byte first;
  read_full(probe.get(), {&first, 1}, file.who());
  const int dropped = static_cast<int>(bytes) - fill_of(probe.get());
  // A packet of one byte, alone, looks like a stream here: what comes behind tells.
  const bool packet = dropped > 1 || (bytes == 1 && is_packet(file, reader.get(), size));
  if (!packet && queue.packets.size() == 1) queue.packets.clear();
  const bool mixed = (!packet && !queue.packets.empty() && queue.packets.front() != 1) ||
                     std::any_of(queue.packets.begin(), queue.packets.end(), [](uint32_t n) { return n > PIPE_BUF; });
  if (mixed)
    throw Refusal(file.who() + ", a pipe with packets (O_DIRECT) among ordinary data", "let the reader empty it first");
  return queue;
}

}  // namespace

PipeDumper::Seen& PipeDumper::see(const OpenFile& file, const char* image, uint32_t magic) {
  const auto [it, fresh] = pipes_.try_emplace(inode_of(file.st));
  Seen& seen = it->second;
  const int access = file.access();
  if (fresh) {
    seen.id = static_cast<uint32_t>(pipes_.size());
    seen.who = file.who();
    const short events = poll_now(file.ours.get());
    // A read end without writers reports POLLHUP, a write end without readers POLLERR (pipe_poll in the kernel).
    if (access == O_RDONLY) seen.other_side = (events & POLLHUP) == 0;
    if (access == O_WRONLY) seen.other_side = (events & POLLERR) == 0;
    dump_data(file, seen.id, image, magic);
  }
  seen.reader |= access != O_WRONLY;
  seen.writer |= access != O_RDONLY;
  return seen;
}

void PipeDumper::dump_pipe(const OpenFile& file) {
  const Seen& seen = see(file, "pipes-data.img", magic::kPipesData);
  img::file_entry entry = entry_of(img::fd_types::PIPE, file.id);
  describe_common(file, *entry.mutable_pipe());
  entry.mutable_pipe()->set_pipe_id(seen.id);
  context_.emit(entry);
  record_owner(context_, file);
}

void PipeDumper::dump_fifo(const OpenFile& file, RegularDumper& regular) {
  OpenFile path;  // the same file, described once more as what the path leads to
  path.proc = file.proc;
  path.fd = file.fd;
  path.waits_at = file.waits_at;
  path.ours = file.ours.dup();
  path.link = file.link;
  path.st = file.st;
  path.info = file.info;
  path.id = context_.new_id();
  regular.dump(path);
  Seen& seen = see(file, "fifo-data.img", magic::kFifoData);
  // Who opens one to read without waiting hears of no hang-up until a writer has come and gone (fifo_open in the
  // kernel).
  if (file.access() == O_RDONLY && (poll_now(file.ours.get()) & POLLHUP) == 0) seen.waiting.push_back(file.id);
  img::file_entry entry = entry_of(img::fd_types::FIFO, file.id);
  entry.mutable_fifo()->set_id(file.id);
  entry.mutable_fifo()->set_pipe_id(seen.id);
  entry.mutable_fifo()->set_regf_id(path.id);
  context_.emit(entry);
}

Refusal PipeDumper::held_outside(const Seen& seen, const std::string& holder) {
  return {seen.who + ", " +
              (seen.reader ? "the read end of a pipe whose write end" : "the write end of a pipe whose read end") +
              " is held by " + holder + " outside of the tree",
          "redirect it to a file or /dev/null, or move the other process along"};
}

void PipeDumper::check_ends() const {
  for (const auto& [inode, seen] : pipes_)
    if ((!seen.reader || !seen.writer) && seen.other_side) throw held_outside(seen, "a process");
}

void PipeDumper::check_fifo_ends() const {
  for (const auto& [inode, seen] : pipes_) {
    if (seen.writer && !seen.reader && seen.other_side) throw held_outside(seen, "a process");
    if (seen.writer || seen.waiting.empty()) continue;
    if (const auto holder = context_.outside_writer(inode)) throw held_outside(seen, *holder);
    for (const uint32_t id : seen.waiting) {
      ext::WaitingReader reader;
      reader.set_id(id);
      context_.images.write(kWaitingReadersImage, kWaitingReadersMagic).entry(reader);
    }
  }
}

void PipeDumper::dump_data(const OpenFile& file, uint32_t pipe_id, const char* image, uint32_t magic) {
  if ((file.info.flags & O_PATH) != 0) return;
  int queued = 0;
  check(::ioctl(file.ours.get(), FIONREAD, &queued), "ask the fill of a pipe:", file.who());
  const int size = check(::fcntl(file.ours.get(), F_GETPIPE_SZ), "ask the size of a pipe:", file.who());
  img::pipe_data_entry entry;
  entry.set_pipe_id(pipe_id);
  entry.set_bytes(static_cast<uint32_t>(queued));
  entry.set_size(static_cast<uint32_t>(size));
  Queue queue;
  if (queued > 0) queue = read_queue(file, static_cast<size_t>(queued), size);
  ImageWriter writer = context_.images.write(image, magic);
  writer.entry(entry);
  writer.raw(queue.bytes);
  if (!queue.packets.empty()) dump_packets(pipe_id, magic == magic::kFifoData, queue.packets);
}

void PipeDumper::dump_packets(uint32_t pipe_id, bool fifo, const std::vector<uint32_t>& lengths) {
  ext::PipePackets packets;
  packets.set_pipe_id(pipe_id);
  packets.set_fifo(fifo);
  for (const uint32_t n : lengths) packets.add_lengths(n);
  context_.images.write(kPipePacketsImage, kPipePacketsMagic).entry(packets);
}

}  // namespace migrate
