#include "data_pipeline/hdf5_file.h"

#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <type_traits>

#include "runtime/error.h"
#include "runtime/files.h"
#include "runtime/progress.h"

namespace notellm {
namespace {

constexpr hsize_t chunk_elements = 1 << 16;
constexpr int64_t seal_bytes = 512;  // the smallest user block
constexpr std::string_view seal_text = " file; XXH3-128 of what follows the first 512 bytes: ";

// Closes what an HDF5 call opened.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

// The library prints its error stack unless told not to.
void quiet() {
  static const bool done = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  NOTELLM_CHECK(done, "HDF5 cannot be initialised");
}

// What the library says about its last failure.
std::string reason() {
  std::string text;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned, const H5E_error2_t* error, void* text) {
        auto& out = *static_cast<std::string*>(text);
        if (out.empty() && error->desc) out = error->desc;
        return herr_t{0};
      },
      &text);
  return text;
}

template <class T>
hid_t stored_type() {
  if constexpr (std::is_same_v<T, uint8_t>) return H5T_STD_U8LE;
  if constexpr (std::is_same_v<T, int32_t>) return H5T_STD_I32LE;
  if constexpr (std::is_same_v<T, uint64_t>) return H5T_STD_U64LE;
  if constexpr (std::is_same_v<T, float>) return H5T_IEEE_F32LE;
}

template <class T>
hid_t memory_type() {
  if constexpr (std::is_same_v<T, uint8_t>) return H5T_NATIVE_UINT8;
  if constexpr (std::is_same_v<T, int32_t>) return H5T_NATIVE_INT32;
  if constexpr (std::is_same_v<T, uint64_t>) return H5T_NATIVE_UINT64;
  if constexpr (std::is_same_v<T, float>) return H5T_NATIVE_FLOAT;
}

const char* type_name(hid_t type) {
  if (H5Tequal(type, H5T_STD_U8LE) > 0) return "uint8";
  if (H5Tequal(type, H5T_STD_I32LE) > 0) return "int32";
  if (H5Tequal(type, H5T_STD_U64LE) > 0) return "uint64";
  if (H5Tequal(type, H5T_IEEE_F32LE) > 0) return "float32";
  return "another type";
}

std::string seal_of(const std::string& checksum) {
  std::string seal = fmt::format("{}{}{}\n", hdf5_begin, seal_text, checksum);
  seal.resize(seal_bytes, '\0');
  return seal;
}

void check_seal(const std::filesystem::path& path) {
  std::string seal(seal_bytes, '\0');
  std::ifstream(path, std::ios::binary).read(seal.data(), seal_bytes);
  if (seal.starts_with("\x89HDF"))
    fail(ErrorKind::data,
         "{}: an HDF5 file of another program, or of an earlier version of this one; make it again (prepare, embed)",
         path.string());
  if (!seal.starts_with(hdf5_begin))
    fail(ErrorKind::data, "{}: not an HDF5 file of this program, or damaged; make it again", path.string());
  if (seal != seal_of(checksum_file(path, seal_bytes)))
    fail(ErrorKind::data, "{}: damaged or cut short: not as it was written, by its checksum; make it again",
         path.string());
}

// A step of building a file in memory: it fails only for lack of memory or a wrong name.
hid_t built(hid_t result, const char* what) {
  NOTELLM_CHECK(result >= 0, "HDF5 cannot build {}: {}", what, reason());
  return result;
}

}  // namespace

int64_t create_hdf5() {
  quiet();
  const Handle access(built(H5Pcreate(H5P_FILE_ACCESS), "a file"), H5Pclose);
  const Handle create(built(H5Pcreate(H5P_FILE_CREATE), "a file"), H5Pclose);
  built(H5Pset_fapl_core(access, 1 << 20, false), "a file in memory");
  built(H5Pset_userblock(create, seal_bytes), "a file with a user block");
  return built(H5Fcreate("in memory", H5F_ACC_TRUNC, create, access), "a file");
}

void save_hdf5(int64_t file, const std::filesystem::path& path) {
  built(H5Fflush(file, H5F_SCOPE_GLOBAL), "the file");
  const ssize_t size = H5Fget_file_image(file, nullptr, 0);  // without the user block
  built(size, "the file's image");
  const auto image = std::make_unique_for_overwrite<char[]>(size);
  built(H5Fget_file_image(file, image.get(), size), "the file's image");
  const std::string_view content(image.get(), size);
  const std::string seal = seal_of(checksum(content));
  const std::string_view pieces[] = {seal, content};
  write_file(path, pieces);
}

Hdf5Writer::Hdf5Writer() : file_(create_hdf5()) {}

Hdf5Writer::~Hdf5Writer() { H5Fclose(file_); }

template <class T>
void Hdf5Writer::write(const std::string& name, std::span<const T> values) {
  const hsize_t size = values.size();
  const Handle space(built(H5Screate_simple(1, &size, nullptr), name.c_str()), H5Sclose);
  const Handle create(built(H5Pcreate(H5P_DATASET_CREATE), name.c_str()), H5Pclose);
  const Handle link(built(H5Pcreate(H5P_LINK_CREATE), name.c_str()), H5Pclose);
  built(H5Pset_obj_track_times(create, false), name.c_str());
  built(H5Pset_create_intermediate_group(link, 1), name.c_str());
  // A chunk may not be larger than the array.
  const hsize_t chunk = std::clamp<hsize_t>(size, 1, chunk_elements);
  if (size > 0) {
    built(H5Pset_chunk(create, 1, &chunk), name.c_str());
    built(H5Pset_shuffle(create), name.c_str());
    built(H5Pset_deflate(create, 1), name.c_str());
  }
  const Handle data(
      built(H5Dcreate2(file_, name.c_str(), stored_type<T>(), space, link, create, H5P_DEFAULT), name.c_str()),
      H5Dclose);
  if (size > 0) built(H5Dwrite(data, memory_type<T>(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), name.c_str());
}

void Hdf5Writer::write_text(const std::string& name, const std::string& text) {
  const Handle type(built(H5Tcopy(H5T_C_S1), name.c_str()), H5Tclose);
  built(H5Tset_size(type, std::max<size_t>(text.size(), 1)), name.c_str());
  built(H5Tset_strpad(type, H5T_STR_NULLPAD), name.c_str());
  built(H5Tset_cset(type, H5T_CSET_UTF8), name.c_str());
  const Handle space(built(H5Screate(H5S_SCALAR), name.c_str()), H5Sclose);
  const Handle attribute(built(H5Acreate2(file_, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT), name.c_str()),
                         H5Aclose);
  built(H5Awrite(attribute, type, text.c_str()), name.c_str());
}

void Hdf5Writer::save(const std::filesystem::path& path) { save_hdf5(file_, path); }

Hdf5File::Hdf5File(const std::filesystem::path& path) : path_(path) {
  quiet();
  errno = 0;
  // So that a missing file and a foreign one are told apart.
  if (::access(path.c_str(), R_OK) != 0 || std::filesystem::is_directory(path))
    fail(ErrorKind::io, "{}: cannot be read: {}", path.string(), std::strerror(errno ? errno : EISDIR));
  check_seal(path);
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  NOTELLM_CHECK(access >= 0 && H5Pset_file_locking(access, false, true) >= 0, "HDF5: {}", reason());
  file_ = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access);
  if (file_ < 0) fail(ErrorKind::data, "{}: HDF5 cannot open it: {}", path.string(), reason());
}

Hdf5File::~Hdf5File() { H5Fclose(file_); }

bool Hdf5File::has_text(const std::string& name) const { return H5Aexists(file_, name.c_str()) > 0; }

std::string Hdf5File::text(const std::string& name) const {
  const Handle attribute(H5Aopen(file_, name.c_str(), H5P_DEFAULT), H5Aclose);
  if (attribute < 0)
    fail(ErrorKind::data, "{}: no attribute \"{}\"; the file was not written by this program", path_.string(), name);
  const Handle type(H5Aget_type(attribute), H5Tclose);
  const Handle space(H5Aget_space(attribute), H5Sclose);
  if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0 || H5Sget_simple_extent_npoints(space) != 1)
    fail(ErrorKind::data, "{}: attribute \"{}\" is not a text of fixed length", path_.string(), name);
  std::string text(H5Tget_size(type), '\0');
  if (H5Aread(attribute, type, text.data()) < 0)
    fail(ErrorKind::data, "{}: attribute \"{}\" cannot be read: {}", path_.string(), name, reason());
  text.resize(std::strlen(text.c_str()));
  return text;
}

namespace {

// An array that is open for reading; fails naming the file and it.
class OpenArray {
 public:
  OpenArray(hid_t file, const std::filesystem::path& path, const std::string& name)
      : data_(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose), space_(open_space(path, name), H5Sclose) {}
  hid_t data() const { return data_; }
  hid_t space() const { return space_; }
  int64_t length() const {
    hsize_t size = 0;
    H5Sget_simple_extent_dims(space_, &size, nullptr);
    return static_cast<int64_t>(size);
  }

 private:
  hid_t open_space(const std::filesystem::path& path, const std::string& name) const {
    if (data_ < 0) fail(ErrorKind::data, "{}: no array \"{}\" ({})", path.string(), name, reason());
    const hid_t space = H5Dget_space(data_);
    if (space < 0 || H5Sget_simple_extent_ndims(space) != 1) {
      if (space >= 0) H5Sclose(space);
      fail(ErrorKind::data, "{}: array \"{}\" must have one dimension", path.string(), name);
    }
    return space;
  }

  Handle data_, space_;
};

}  // namespace

int64_t Hdf5File::length(const std::string& name) const { return OpenArray(file_, path_, name).length(); }

template <class T>
void Hdf5File::read(const std::string& name, int64_t begin, std::span<T> values) const {
  const OpenArray array(file_, path_, name);
  const Handle type(H5Dget_type(array.data()), H5Tclose);
  if (H5Tequal(type, stored_type<T>()) <= 0)
    fail(ErrorKind::data, "{}: array \"{}\" is of {}, not of {}", path_.string(), name, type_name(type),
         type_name(stored_type<T>()));
  const hsize_t first = begin, count = values.size();
  if (begin < 0 || static_cast<int64_t>(first + count) > array.length())
    fail(ErrorKind::data, "{}: array \"{}\" has {} elements, {} to {} are asked for", path_.string(), name,
         array.length(), first, first + count);
  if (count == 0) return;
  const Handle memory(H5Screate_simple(1, &count, nullptr), H5Sclose);
  if (H5Sselect_hyperslab(array.space(), H5S_SELECT_SET, &first, nullptr, &count, nullptr) < 0 ||
      H5Dread(array.data(), memory_type<T>(), memory, array.space(), H5P_DEFAULT, values.data()) < 0)
    fail(ErrorKind::data, "{}: array \"{}\" cannot be read: {}", path_.string(), name, reason());
}

std::vector<std::string> Hdf5File::list() const {
  std::vector<std::string> names;
  const auto visit = [](hid_t file, const char* name, const H5L_info_t*, void* names) {
    H5O_info_t info;
    if (H5Oget_info_by_name2(file, name, &info, H5O_INFO_BASIC, H5P_DEFAULT) >= 0 && info.type == H5O_TYPE_DATASET)
      static_cast<std::vector<std::string>*>(names)->emplace_back(name);
    return herr_t{0};
  };
  if (H5Lvisit(file_, H5_INDEX_NAME, H5_ITER_INC, visit, &names) < 0)
    fail(ErrorKind::data, "{}: damaged: {}", path_.string(), reason());
  for (std::string& name : names) {
    const OpenArray array(file_, path_, name);
    const Handle type(H5Dget_type(array.data()), H5Tclose);
    name = fmt::format("{}  {} [{}]", name, type_name(type), format_count(array.length()));
  }
  return names;
}

template void Hdf5Writer::write(const std::string&, std::span<const uint8_t>);
template void Hdf5Writer::write(const std::string&, std::span<const int32_t>);
template void Hdf5Writer::write(const std::string&, std::span<const uint64_t>);
template void Hdf5Writer::write(const std::string&, std::span<const float>);
template void Hdf5File::read(const std::string&, int64_t, std::span<uint8_t>) const;
template void Hdf5File::read(const std::string&, int64_t, std::span<int32_t>) const;
template void Hdf5File::read(const std::string&, int64_t, std::span<uint64_t>) const;
template void Hdf5File::read(const std::string&, int64_t, std::span<float>) const;

}  // namespace notellm
