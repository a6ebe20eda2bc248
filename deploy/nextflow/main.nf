// nextflow run deploy/nextflow -profile docker --input atlas.h5ad --folder "$PWD/scamac" --n_clusters auto
include { SCAMAC_CLUSTER } from './modules/scamac/cluster/main'

workflow {
    if (!params.input || !params.folder) {
        error 'give --input FILES and --folder FOLDER: an absolute path outside of the work folder, or s3://bucket/folder'
    }
    if (params.folder.startsWith('/')) {
        file(params.folder).mkdirs() // before docker makes it, as root
    }
    inputs = channel.fromPath(params.input, checkIfExists: true).map { cells -> tuple([id: cells.baseName], cells, params.n_clusters) }
    SCAMAC_CLUSTER(inputs, params.folder)
}
