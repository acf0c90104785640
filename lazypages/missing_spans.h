// Where pages are missing, in memory that does not grow with the number of holes between them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

namespace migrate {

/// Pages that are missing one after the other, here as at the source.
struct MissingRun {
  uint64_t address = 0;  ///< here, now
  uint64_t source = 0;   ///< where they were when the memory was left behind
  uint64_t bytes = 0;
  auto operator<=>(const MissingRun&) const = default;
};

/// Pages side by side, here as at the source, of which the first and the last are missing.
struct MissingSpan {
  uint64_t address = 0, source = 0, bytes = 0;
  std::vector<uint64_t> bits;  ///< of each page whether it is missing, if not all are

  uint64_t end() const { return address + bytes; }
  uint64_t pages() const;  ///< missing
  bool misses(uint64_t at) const;
  /// The first missing run within [from, to).
  std::optional<MissingRun> first(uint64_t from, uint64_t to) const;
  /// What is missing within [from, to).
  std::optional<MissingSpan> part(uint64_t from, uint64_t to) const;
  /// [from, to) is not missing any more. False: that is not within it, or it is too long; nothing was done.
  bool make_hole(uint64_t from, uint64_t to);

  uint64_t words() const { return kWords + bits.size(); }  ///< that save() puts
  template <class Put>
  void save(Put&& put) const {
    for (const uint64_t word : {address, source, bytes, uint64_t{bits.size()}}) put(word);
    for (const uint64_t word : bits) put(word);
  }
  /// `get` throws at the end of what save() wrote.
  template <class Get>
  static MissingSpan load(Get&& get) {
    MissingSpan span;
    for (uint64_t* word : {&span.address, &span.source, &span.bytes}) *word = get();
    for (uint64_t n = get(); n > 0; --n) span.bits.push_back(get());
    return span;
  }
  static constexpr uint64_t kWords = 4;  ///< but for `bits`
};

/// A set of pages of an address space, each with a source address that no other has.
///
/// Pages that are gone for good (drop()) leave holes in spans of at most kMostWithHoles, a bit a page: a program that
/// discards every second page of 64 MiB and forks would else cost 1 MiB for each child. What lies between two missing
/// pages of a span is missing nowhere.
class MissingSpans {
 public:
  static constexpr uint64_t kMostWithHoles = 16 << 20;

  /// Nothing is missing there.
  void insert(MissingSpan span);
  void insert(MissingRun run) { insert(MissingSpan{run.address, run.source, run.bytes, {}}); }
  /// Takes out what is missing in [start, end), which may be inserted again.
  std::vector<MissingSpan> take(uint64_t start, uint64_t end);
  /// Takes out what is missing in [start, end), which is missing nowhere any more.
  void drop(uint64_t start, uint64_t end);
  /// Makes one of spans between which nothing lies that is missing elsewhere. Only if nothing that was taken out will
  /// be inserted again.
  void join();

  std::optional<uint64_t> source_of(uint64_t address) const;
  /// The first missing run at `address` or above; it may go on in another span.
  std::optional<MissingRun> next(uint64_t address) const;
  /// The first missing run of the source's range [source, source + bytes), cut to it; it may go on in another span.
  std::optional<MissingRun> first_of_source(uint64_t source, uint64_t bytes) const;
  std::vector<MissingRun> runs() const;  ///< ascending by address
  uint64_t pages() const { return pages_; }
  uint64_t spans() const { return spans_.size(); }
  uint64_t bit_words() const { return bit_words_; }
  uint64_t pages_with_bits() const { return bit_pages_; }  ///< missing pages of spans with holes

  uint64_t words() const { return 1 + MissingSpan::kWords * spans_.size() + bit_words_; }  ///< that save() puts
  template <class Put>
  void save(Put&& put) const {
    put(spans_.size());
    for (const auto& [start, span] : spans_) span.save(put);
  }
  template <class Get>
  void load(Get&& get) {
    for (uint64_t n = get(); n > 0; --n) put(MissingSpan::load(get));
  }

 private:
  using Spans = std::map<uint64_t, MissingSpan>;

  Spans::const_iterator at_or_after(uint64_t address) const;
  MissingSpan pull(Spans::const_iterator at);
  void put(MissingSpan span);
  void put_rest(const MissingSpan& span, uint64_t start, uint64_t end);

  Spans spans_;                             ///< by address
  std::map<uint64_t, uint64_t> by_source_;  ///< source address of each → its address
  uint64_t pages_ = 0, bit_words_ = 0, bit_pages_ = 0;
};

}  // namespace migrate
